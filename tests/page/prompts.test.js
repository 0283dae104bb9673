import assert from 'node:assert/strict'
import test from 'node:test'
import * as prompts from '../../apps/dualclickmed/lib/viewers/page/prompts.js'

test('a voxel that is clicked again changes sides', () => {
    let given = prompts.clicked(prompts.none(), [1, 2, 3], true)
    given = prompts.clicked(given, [1, 2, 3], false)
    assert.deepEqual(given.marks, [{ points: [[1, 2, 3]], inside: false }])
})

test('a second rectangle in another plane gives the box its depth', () => {
    let given = prompts.boxed(prompts.none(), [10, 20, 30, 40, 5, 6], 2)
    assert.equal(given.box.flat, 2)
    given = prompts.boxed(given, [12, 25, 33, 34, 0, 9], 1)
    assert.deepEqual(given.box, { edges: [10, 25, 30, 40, 0, 9], flat: null })
})

test('a rectangle in the same plane, or after a whole box, starts anew', () => {
    let given = prompts.boxed(prompts.none(), [10, 20, 30, 40, 5, 6], 2)
    given = prompts.boxed(given, [1, 2, 3, 4, 5, 6], 2)
    assert.deepEqual(given.box, { edges: [1, 2, 3, 4, 5, 6], flat: 2 })
    given = prompts.boxed(given, [1, 2, 3, 4, 0, 9], 1)
    given = prompts.boxed(given, [0, 9, 3, 4, 0, 9], 1)
    assert.equal(given.box.flat, 1)
})

test('a stroke is thinned to its course, with both ends', () => {
    const points = Array.from({ length: 200 }, (_, at) => [at >> 1, 0, 0])
    const thin = prompts.thinned(points)
    assert.equal(thin.length, prompts.STROKE_POINTS)
    assert.deepEqual([thin[0], thin.at(-1)], [[0, 0, 0], [99, 0, 0]])
    assert.deepEqual(prompts.thinned([[1, 1, 1], [1, 1, 1]]), [[1, 1, 1]])
})

test('the server is told each voxel once, in order, and what was said last counts', () => {
    let given = prompts.scribbled(prompts.none(), [[0, 0, 0], [1, 0, 0]], true)
    given = prompts.clicked(given, [1, 0, 0], false)
    assert.deepEqual(prompts.toServer(given), { clicks: [[0, 0, 0, 1], [1, 0, 0, 0]] })
})

test('background clicks alone are asked about only where the label has begun', () => {
    const given = prompts.clicked(prompts.none(), [1, 2, 3], false)
    assert.equal(prompts.canAsk(given, false), false)
    assert.equal(prompts.canAsk(given, true), true)
    assert.equal(prompts.canAsk(prompts.none(), true), false)
})

test('a rectangle whose corner is pulled stays one until it has a depth', () => {
    let given = prompts.boxed(prompts.none(), [10, 20, 30, 40, 5, 6], 2)
    given = prompts.edited(given, [12, 20, 30, 40, 5, 6])
    assert.deepEqual(given.box, { edges: [12, 20, 30, 40, 5, 6], flat: 2 })
    assert.equal(prompts.boxed(given, [12, 20, 33, 34, 0, 9], 1).box.flat, null)
    assert.equal(prompts.edited(given, [12, 20, 30, 40, 3, 8]).box.flat, null)
})
