import assert from 'node:assert/strict'
import test from 'node:test'
import { EMPTY, LabelMap, boxAround, decode, encode, heldBy, merged, union } from '../../apps/dualclickmed/lib/viewers/page/labelmap.js'

const filled = (length, value) => new Uint8Array(length).fill(value)

test('two corners in any order span the box of their voxels and all between', () => {
    assert.deepEqual(boxAround([4, 1, 7], [2, 1, 9]), [2, 5, 1, 2, 7, 10])
    assert.deepEqual(boxAround([2, 1, 9], [4, 1, 7]), [2, 5, 1, 2, 7, 10])
})

test('runs give the values again, however they begin and end', () => {
    for (const values of [[], [0], [0, 0, 3, 3, 0], [7, 7, 7], [1, 2, 1]]) {
        assert.deepEqual([...decode(encode(values), values.length)], values)
    }
})

test('a union with nothing is the other box', () => {
    assert.deepEqual(union(EMPTY, [1, 2, 3, 4, 5, 6]), [1, 2, 3, 4, 5, 6])
    assert.deepEqual(union([0, 2, 0, 2, 0, 2], [1, 5, 1, 2, 0, 1]), [0, 5, 0, 2, 0, 2])
})

test('what is written lies where its box says, and is counted', () => {
    const map = new LabelMap([4, 3, 2])
    map.write([1, 3, 0, 2, 1, 2], Uint8Array.from([1, 0, 2, 2]))
    assert.equal(map.at([1, 0, 1]), 1)
    assert.equal(map.at([2, 1, 1]), 2)
    assert.equal(map.at([2, 1, 0]), 0)
    assert.deepEqual([map.counts[1], map.counts[2]], [1, 2])
    assert.deepEqual([...map.cut([1, 3, 0, 2, 1, 2])], [1, 0, 2, 2])
})

test('a change can be taken back and done again', () => {
    const map = new LabelMap([3, 3, 3])
    map.write([0, 2, 0, 2, 0, 2], filled(8, 1))
    const before = map.data.slice()
    const change = map.write([1, 3, 1, 3, 1, 3], filled(8, 2))
    const after = map.data.slice()
    map.apply(change, false)
    assert.deepEqual(map.data, before)
    assert.deepEqual([map.counts[1], map.counts[2]], [8, 0])
    map.apply(change, true)
    assert.deepEqual(map.data, after)
    assert.equal(map.write([1, 3, 1, 3, 1, 3], filled(8, 2)), null)
})

test('other labels are held, and one that is asked for starts from what is stored', () => {
    const map = new LabelMap([4, 1, 1])
    map.write([0, 4, 0, 1, 0, 1], Uint8Array.from([1, 1, 2, 0]))
    assert.deepEqual([...heldBy(map, null, new Set([1])).voxels], [0, 0, 2, 0])
    const stored = new LabelMap([4, 1, 1])
    stored.write([0, 4, 0, 1, 0, 1], Uint8Array.from([1, 0, 1, 1]))
    assert.deepEqual([...heldBy(map, stored, new Set([1])).voxels], [1, 0, 2, 1])
    assert.equal(heldBy(map, null, new Set([1, 2])), null)
})

test("an answer replaces a label's former one and leaves the others", () => {
    const map = new LabelMap([4, 1, 1])
    map.write([0, 4, 0, 1, 0, 1], Uint8Array.from([1, 1, 2, 0]))
    const active = new Set([1])
    const answer = { box: [1, 2, 0, 1, 0, 1], voxels: Uint8Array.from([1]) }
    const { box, voxels } = merged(map, heldBy(map, null, active), active, answer)
    map.write(box, voxels)
    assert.deepEqual([...map.data], [0, 1, 2, 0])
})

test('without an answer a label goes, and nothing else', () => {
    const map = new LabelMap([4, 1, 1])
    map.write([0, 4, 0, 1, 0, 1], Uint8Array.from([1, 1, 2, 0]))
    const active = new Set([1])
    const { box, voxels } = merged(map, heldBy(map, null, active), active, { box: EMPTY, voxels: new Uint8Array(0) })
    map.write(box, voxels)
    assert.deepEqual([...map.data], [0, 0, 2, 0])
})

test('of the labels that are asked for only those begin with what is stored that are meant to', () => {
    const map = new LabelMap([4, 1, 1])
    const stored = new LabelMap([4, 1, 1])
    stored.write([0, 4, 0, 1, 0, 1], Uint8Array.from([1, 0, 2, 2]))
    assert.deepEqual([...heldBy(map, stored, new Set([1, 2]), new Set([2])).voxels], [0, 0, 2, 2])
})
