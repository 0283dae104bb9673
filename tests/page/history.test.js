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
        history.answer(map.write(BOX, Uint8Array.from([value])))
    }
    return { map, history }
}

test('a hundred steps go back and forth without asking the server', () => {
    const { map, history } = answered(100)
    for (let value = 99; value >= 0; value--) {
        assert.equal(history.undo(map).ask, false)
        assert.equal(map.data[0], value)
    }
    assert.equal(history.canUndo, false)
    for (let value = 1; value <= 100; value++) {
        assert.equal(history.redo(map).ask, false)
        assert.deepEqual([map.data[0], history.now.prompts.liver], [value, value])
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

test('a click that got no answer is asked about when one comes back to it', () => {
    const { map, history } = answered(1)
    history.push({ liver: 2 }, 'liver')
    history.push({ liver: 3 }, 'liver')
    history.answer(map.write(BOX, Uint8Array.from([3])))
    assert.equal(history.undo(map).ask, true)
    assert.equal(map.data[0], 1)
    history.answer(map.write(BOX, Uint8Array.from([2])))
    // What came after was counted from another label map.
    assert.equal(history.redo(map).ask, true)
    assert.equal(map.data[0], 2)
})

test('what was kept comes back, and asks the server for what it did not keep', () => {
    const { map, history } = answered(3)
    const restored = History.restored(JSON.parse(JSON.stringify(history.kept())))
    assert.equal(restored.now.prompts.liver, 3)
    const step = restored.undo(map)
    assert.deepEqual([step.label, step.ask, restored.now.prompts.liver], ['liver', true, 2])
    assert.equal(history.kept(2).length, 2)
})
