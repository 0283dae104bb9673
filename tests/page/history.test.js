import assert from 'node:assert/strict'
import test from 'node:test'
import { History } from '../../apps/dualclickmed/lib/viewers/page/history.js'
import { LabelMap } from '../../apps/dualclickmed/lib/viewers/page/labelmap.js'

const BOX = [0, 1, 0, 1, 0, 1]

function answered(steps) {
    const map = new LabelMap([1, 1, 1])
    const history = new History()
    for (let value = 1; value <= steps; value++) {
        history.push({ liver: value }, 'liver')
        history.answer(map.write(BOX, Uint8Array.from([value])), ['liver'])
    }
    return { map, history }
}

test('a hundred steps go back and forth without asking the server', () => {
    const { map, history } = answered(100)
    for (let value = 99; value >= 0; value--) {
        history.undo(map)
        assert.deepEqual([map.data[0], history.stale], [value, []])
    }
    assert.equal(history.canUndo, false)
    for (let value = 1; value <= 100; value++) {
        history.redo(map)
        assert.deepEqual([map.data[0], history.now.prompts.liver, history.stale], [value, value, []])
    }
    assert.equal(history.canRedo, false)
})

test('a new click forgets what was taken back', () => {
    const { map, history } = answered(3)
    history.undo(map)
    history.push({ liver: 9 }, 'liver')
    assert.equal(history.canRedo, false)
    assert.equal(history.now.prompts.liver, 9)
})

test('an answer that is asked for twice is taken back as a whole', () => {
    const { map, history } = answered(1)
    history.answer(map.write(BOX, Uint8Array.from([7])), ['liver'])
    assert.deepEqual(history.undo(map).boxes, [BOX, BOX])
    assert.equal(map.data[0], 0)
    history.redo(map)
    assert.equal(map.data[0], 7)
})

test('a click that got no answer is asked about when one comes back to it', () => {
    const { map, history } = answered(1)
    history.push({ liver: 2 }, 'liver')
    history.push({ liver: 3 }, 'liver')
    history.answer(map.write(BOX, Uint8Array.from([3])), ['liver'])
    history.undo(map)
    assert.deepEqual([map.data[0], history.stale], [1, ['liver']])
    history.answer(map.write(BOX, Uint8Array.from([2])), ['liver'])
    // What came after is still there.
    history.redo(map)
    assert.deepEqual([map.data[0], history.stale], [3, []])
    history.undo(map)
    assert.deepEqual([map.data[0], history.stale], [2, []])
})

test('a label whose answer was overtaken by the next label is still to be asked for', () => {
    const { map, history } = answered(0)
    history.push({ liver: 1 }, 'liver')
    history.push({ liver: 1, spleen: 1 }, 'spleen')
    assert.deepEqual(history.stale, ['liver', 'spleen'])
    history.answer(map.write(BOX, Uint8Array.from([2])), ['liver', 'spleen'])
    assert.deepEqual(history.stale, [])
    history.undo(map)
    assert.deepEqual([map.data[0], history.stale], [0, ['liver']])
})

test('an answer that comes while one goes back leaves what follows as it was', () => {
    const map = new LabelMap([2, 1, 1])
    const history = new History()
    const write = (at, value) => map.write([at, at + 1, 0, 1, 0, 1], Uint8Array.from([value]))
    history.push({ liver: 1 }, 'liver')
    history.push({ liver: 2 }, 'liver')
    history.answer(write(0, 2), ['liver'])
    history.push({ liver: 2, spleen: 1 }, 'spleen')
    history.answer(write(1, 3), ['spleen'])
    for (let step = 0; step < 2; step++) history.undo(map)
    // The first click had been overtaken by the second; now it gets its answer.
    history.answer(write(0, 1), ['liver'])
    const seen = [[...map.data]]
    history.undo(map)
    seen.push([...map.data])
    for (let step = 0; step < 3; step++) {
        history.redo(map)
        seen.push([...map.data])
    }
    assert.deepEqual(seen, [[1, 0], [0, 0], [1, 0], [2, 0], [2, 3]])
    assert.deepEqual(history.stale, [])
})

test('what the server refuses is not asked for again', () => {
    const { history } = answered(0)
    history.push({ liver: 1 }, 'liver')
    history.settle(['liver'])
    history.push({ liver: 1, spleen: 1 }, 'spleen')
    assert.deepEqual(history.stale, ['spleen'])
})

test('what was kept comes back, and asks the server for what it did not keep', () => {
    const { map, history } = answered(3)
    history.push({ liver: 3, spleen: 1 }, 'spleen')
    const kept = JSON.parse(JSON.stringify(history.kept()))
    const restored = History.restored(kept, [])
    assert.deepEqual([restored.now.prompts.liver, restored.stale], [3, ['spleen']])
    restored.answer(null, ['spleen'])
    restored.undo(map)
    restored.undo(map)
    assert.deepEqual([restored.now.prompts, restored.stale], [{ liver: 2 }, ['spleen', 'liver']])
    restored.answer(map.write(BOX, Uint8Array.from([2])), ['spleen', 'liver'])
    restored.redo(map)
    assert.deepEqual([map.data[0], restored.now.prompts.liver, restored.stale], [3, 3, ['spleen']])
    assert.deepEqual(History.restored(kept, null).stale, ['liver', 'spleen'])
    assert.equal(history.kept(2).length, 2)
})

test('whether the label map of the state before is known is told', () => {
    const { map, history } = answered(2)
    assert.equal(history.undo(map).known, true)
    const restored = History.restored(history.kept(), [])
    assert.deepEqual([restored.undo(map).known, restored.redo(map).known], [false, true])
    assert.deepEqual(History.restored(history.kept(), ['spleen']).stale, ['spleen'])
})

test('an answer to a state that was kept does not come undone with the label of the state before', () => {
    const map = new LabelMap([2, 1, 1])
    const write = (at, value) => map.write([at, at + 1, 0, 1, 0, 1], Uint8Array.from([value]))
    const first = new History()
    for (const [prompts, label] of [[{ liver: 1 }, 'liver'], [{ liver: 2 }, 'liver'], [{ liver: 2, spleen: 1 }, 'spleen']]) {
        first.push(prompts, label)
        first.settle(['liver', 'spleen'])
    }
    write(0, 2)
    write(1, 3)
    const history = History.restored(first.kept(), [])
    history.undo(map)
    history.answer(write(1, 0), ['spleen'])
    history.undo(map)
    // The spleen's voxels are gone for good, the liver's are asked for.
    assert.deepEqual([[...map.data], history.stale], [[2, 0], ['liver']])
    history.answer(write(0, 1), ['liver'])
    const seen = []
    for (let step = 0; step < 2; step++) {
        history.redo(map)
        seen.push([...map.data])
    }
    assert.deepEqual(seen, [[2, 0], [2, 3]])
})
