import assert from 'node:assert/strict'
import test, { beforeEach } from 'node:test'
import * as store from '../../apps/dualclickmed/lib/viewers/page/store.js'
import { clicked, none, scribbled } from '../../apps/dualclickmed/lib/viewers/page/prompts.js'
import { Storage } from './support/fakes.js'

beforeEach(() => {
    globalThis.localStorage = new Storage()
})

/** As many states as clicks, each with one more. */
function states(count) {
    let given = none()
    const all = [{ prompts: {}, label: null, stale: [] }]
    for (let at = 0; at < count; at++) {
        given = clicked(given, [at, 2, 3], true)
        all.push({ prompts: { liver: given }, label: 'liver', stale: [] })
    }
    return all
}

test('work comes back as it was, with its label map', () => {
    const work = { print: 'p', labels: [{ name: 'liver' }], active: 0, states: states(3), late: ['liver'] }
    assert.equal(store.keep('one', work), true)
    assert.equal(store.keepMap('one', [0, 1, 0, 1, 0, 1], Uint8Array.from([0, 255, 7])), true)
    const { map, states: found, late } = store.kept('one')
    assert.deepEqual(found, work.states)
    assert.deepEqual([map.box, [...map.packed], late], [[0, 1, 0, 1, 0, 1], [0, 255, 7], ['liver']])
    assert.deepEqual([...store.unfinished()], ['one'])
    store.forget('one')
    assert.deepEqual([store.kept('one'), Object.keys(localStorage)], [null, []])
})

test('two hundred states take little more than their marks', () => {
    let given = none()
    const all = []
    const stroke = Array.from({ length: 500 }, (_, at) => [at, at, at])
    for (let at = 0; at < 200; at++) {
        given = scribbled(given, stroke.map(([x, y, z]) => [x, y, z + at]), true)
        all.push({ prompts: { liver: given }, label: 'liver', stale: [] })
    }
    store.keep('one', { states: all })
    const [text] = Object.values(localStorage)
    assert.ok(text.length < 1.1 * JSON.stringify(given).length + 100_000, `${text.length}`)
    assert.deepEqual(store.kept('one').states, all)
})

test('label maps of other images make room, then older states', () => {
    localStorage.most = 6000
    store.keep('other', { states: states(2) })
    store.keepMap('other', [0, 1, 0, 1, 0, 1], new Uint8Array(3000))
    assert.equal(store.keep('one', { states: states(30) }), true)
    assert.deepEqual([store.kept('other').map, store.kept('other').states.length], [null, 3])
    assert.equal(store.kept('one').states.length, 31)
    localStorage.most = 7000
    assert.equal(store.keep('one', { states: states(60) }), true)
    assert.deepEqual(store.kept('one').states, states(60).slice(-20))
})

test('where there is no room at all nothing old is taken for what is there now', () => {
    store.keep('one', { states: states(1) })
    localStorage.most = 20
    assert.equal(store.keep('one', { states: states(2) }), false)
    assert.equal(store.kept('one'), null)
})

test('a label map that does not fit is not kept, and no older one in its place', () => {
    store.keep('one', { states: states(1) })
    store.keepMap('one', [0, 1, 0, 1, 0, 1], new Uint8Array(10))
    assert.equal(store.keepMap('one', [0, 1, 0, 1, 0, 1], new Uint8Array(3_000_000)), false)
    assert.equal(store.kept('one').map, null)
})

test('what this page did not write is passed over', () => {
    for (const text of ['', '{', '[]', '{"states": 3}', '{"states": [{}]}', '{"states": [{"prompts": [["a", [0], null]]}]}']) {
        localStorage.setItem('dualclickmed-work-2:one', text)
        assert.equal(store.kept('one')?.states?.[0]?.label ?? null, null)
    }
})

test('a browser that keeps nothing lets the page work', () => {
    Object.defineProperty(globalThis, 'localStorage', { configurable: true, get: () => { throw new DOMException('no', 'SecurityError') } })
    try {
        assert.deepEqual([store.settings(), store.keepSettings({}), store.kept('one')], [{}, false, null])
        assert.equal(store.keep('one', { states: states(1) }), false)
        assert.equal(store.unfinished().size, 0)
        store.forget('one')
    } finally {
        Object.defineProperty(globalThis, 'localStorage', { configurable: true, writable: true, value: new Storage() })
    }
})
