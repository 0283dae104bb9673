import assert from 'node:assert/strict'
import test, { afterEach, beforeEach } from 'node:test'
import { Session } from '../../apps/dualclickmed/lib/viewers/page/session.js'
import { Server, Storage, Viewer, until } from './support/fakes.js'

const SETTINGS = { auto: true, lock: true, correct: true, doubt: false, review: false }
let server
const sessions = []

beforeEach(() => {
    globalThis.localStorage = new Storage()
    server = new Server()
})

afterEach(() => {
    for (const session of sessions.splice(0)) {
        clearTimeout(session.waiting)
        session.cancel()
        // A label map that is being packed would be kept in the next test's browser.
        session.dirty = false
    }
})

async function opened(settings = {}, image = 'one', known = ['liver']) {
    const session = new Session(new Viewer(), { ...SETTINGS, ...settings })
    sessions.push(session)
    session.problems = []
    session.addEventListener('problem', ({ detail }) => session.problems.push(detail.message))
    session.addEventListener('advice', ({ detail }) => session.problems.push(detail))
    await session.open(image, known, () => {})
    return session
}

const seen = (session) => [...session.map.data].join('')
const settled = (session) => until(() => !session.asking && !session.history.stale.length)

async function clicked(session, x, inside = true) {
    session.click([x, 0, 0], inside)
    await settled(session)
}

test('a click is answered, and undo and redo ask nobody', async () => {
    const session = await opened()
    await clicked(session, 1)
    await clicked(session, 4)
    assert.equal(seen(session), '01101100')
    const asked = server.asked.length
    session.undo()
    assert.equal(seen(session), '01100000')
    session.undo()
    assert.equal(seen(session), '00000000')
    session.redo()
    session.redo()
    assert.equal(seen(session), '01101100')
    assert.equal(server.asked.length, asked)
})

test('an answer to what was given before another image was chosen changes nothing there', async () => {
    const session = await opened()
    server.slow = true
    session.click([1, 0, 0], true)
    const coming = session.open('two', ['liver'], () => {})
    // While the other one comes, nothing can be given for this one.
    session.click([5, 0, 0], true)
    session.undo()
    assert.equal(session.given.liver.marks.length, 1)
    await until(() => server.waiting.length >= 2)
    server.slow = false
    server.release()
    await coming
    server.release()
    await until(() => !session.asking)
    assert.deepEqual([session.image, seen(session), session.history.canUndo], ['two', '00000000', false])
})

test('of two images that are chosen one after the other the last one is shown', async () => {
    const session = await opened()
    server.slow = true
    const first = session.open('two', ['liver'], () => {})
    await until(() => server.waiting.length >= 2)
    const second = session.open('three', ['liver'], () => {})
    await until(() => server.waiting.length >= 4)
    server.slow = false
    server.release()
    assert.deepEqual([await first, await second], [false, true])
    assert.deepEqual([session.image, session.viewer.shown.at(-1)], ['three', 'three'])
})

test('an image that cannot be opened leaves the former one at work', async () => {
    const session = await opened()
    await clicked(session, 1)
    const fetched = globalThis.fetch
    globalThis.fetch = () => Promise.reject(new TypeError('Failed to fetch'))
    await assert.rejects(session.open('two', ['liver'], () => {}), /does not answer/)
    globalThis.fetch = fetched
    await clicked(session, 4)
    assert.deepEqual([session.image, seen(session)], ['one', '01101100'])
})

test('what was left unfinished comes back when the image is opened again', async () => {
    const session = await opened()
    await clicked(session, 1)
    session.addLabel('spleen')
    await clicked(session, 5)
    await session.open('two', ['liver'], () => {})
    assert.equal(seen(session), '00000000')
    const asked = server.asked.length
    assert.equal(await session.open('one', ['liver'], () => {}), 'restored')
    assert.deepEqual([seen(session), session.label.name, server.asked.length], ['01100220', 'spleen', asked])
})

test('a page that ends at once loses no click', async () => {
    const session = await opened()
    await clicked(session, 1)
    await session.saveMap()
    server.slow = true
    session.click([4, 0, 0], true)
    // Here the browser is killed: nothing else of this session happens.
    clearTimeout(session.waiting)
    server.slow = false
    const again = await opened()
    await settled(again)
    assert.equal(seen(again), '01101100')
    assert.equal(again.given.liver.marks.length, 2)
})

test('a page that ends between an answer and the keeping of its voxels gets them again', async () => {
    const session = await opened()
    await clicked(session, 1)
    await session.saveMap()
    await clicked(session, 4)
    clearTimeout(session.waiting)
    const again = await opened()
    await settled(again)
    assert.equal(seen(again), '01101100')
})

test('another image under the same name gets none of the old clicks', async () => {
    const session = await opened()
    await clicked(session, 1)
    await session.saveMap()
    server.about = (image) => ({ ...Server.prototype.about.call(server, image), range: [0, 99] })
    const again = await opened()
    assert.deepEqual([seen(again), again.history.canUndo, again.dirty], ['00000000', false, false])
})

test('without answers by themselves nothing is asked until it is wanted', async () => {
    const session = await opened({ auto: false })
    session.click([1, 0, 0], true)
    session.click([4, 0, 0], true)
    session.undo()
    assert.deepEqual([server.asked.length, session.given.liver.marks.length], [0, 1])
    session.ask()
    await settled(session)
    assert.equal(seen(session), '01100000')
    session.undo()
    session.redo()
    assert.deepEqual([seen(session), server.asked.length], ['01100000', 1])
})

test('a click while an answer is coming is not taken for answered', async () => {
    const session = await opened({ auto: false })
    server.slow = true
    session.click([1, 0, 0], true)
    session.ask()
    session.click([4, 0, 0], true)
    server.slow = false
    server.release()
    assert.deepEqual(session.history.stale, ['liver'])
    session.ask()
    await settled(session)
    assert.equal(seen(session), '01101100')
})

test('a label that nothing is given for is what is stored of it, whatever is asked', async () => {
    server.stored.one = { labels: ['liver'], voxels: [3, 0, 0, 0, 0, 0, 0, 1].map((value) => Math.min(value, 1)) }
    const session = await opened({ correct: false })
    assert.equal(seen(session), '10000001')
    session.ask()
    await until(() => !session.asking)
    assert.equal(seen(session), '10000001')
    await clicked(session, 3)
    assert.equal(seen(session), '00011000')
    session.clear()
    await settled(session)
    assert.equal(seen(session), '10000001')
})

test('a stored label is corrected', async () => {
    server.stored.one = { labels: ['liver'], voxels: [1, 1, 0, 0, 0, 0, 0, 0] }
    const session = await opened()
    await clicked(session, 4)
    assert.equal(seen(session), '11001100')
    await clicked(session, 0, false)
    assert.equal(seen(session), '01001100')
})

test('stored labels keep their names when somebody else has stored others meanwhile', async () => {
    server.stored.one = { labels: ['liver', 'spleen'], voxels: [1, 1, 0, 0, 0, 0, 2, 2] }
    const session = await opened()
    await clicked(session, 3)
    await session.saveMap()
    server.stored.one = { labels: ['kidney', 'spleen', 'liver'], voxels: [3, 3, 1, 0, 0, 0, 2, 2] }
    const again = await opened()
    assert.deepEqual(again.labels.map(({ name }) => name), ['liver', 'spleen', 'kidney'])
    assert.equal([...again.stored.data].join(''), '11300022')
    assert.equal(seen(again), '11011022')
})

test('nothing is submitted that the annotator has not seen', async () => {
    const session = await opened()
    await clicked(session, 1)
    server.slow = true
    session.click([4, 0, 0], true)
    await assert.rejects(session.submit(''), /has no answer yet/)
    assert.equal(server.submitted.length, 0)
    server.slow = false
    server.release()
    await settled(session)
    await session.submit('')
    assert.deepEqual(server.submitted[0].labels, ['liver'])
    assert.equal(session.dirty, false)
})

test('while a label is submitted nothing is given, and a second submission does not begin', async () => {
    const session = await opened()
    await clicked(session, 1)
    server.slow = true
    const submitting = session.submit('')
    session.click([5, 0, 0], true)
    assert.equal(await session.submit(''), null)
    await until(() => server.waiting.length)
    server.slow = false
    server.release()
    await submitting
    assert.deepEqual([session.given.liver.marks.length, server.submitted.length], [1, 1])
})

test('what was submitted is not unfinished, even if it was being kept', async () => {
    const session = await opened()
    await clicked(session, 1)
    const keeping = session.saveMap()
    await session.submit('')
    await keeping
    assert.deepEqual(Object.keys(localStorage), [])
    // To go on from there is unfinished again.
    await clicked(session, 5)
    assert.equal(session.dirty, true)
    assert.equal(Object.keys(localStorage).length, 1)
})

test('what the server refuses is told once and not sent again with the next label', async () => {
    const session = await opened()
    server.refusal = 400
    session.click([1, 0, 0], true)
    await until(() => session.problems.length)
    assert.deepEqual([session.problems, session.history.stale], [['Refused.'], []])
    server.refusal = null
    session.addLabel('spleen')
    await clicked(session, 5)
    assert.deepEqual(Object.keys(server.asked.at(-1).prompts), ['spleen'])
})

test('what a server did not answer is asked for with the next click', async () => {
    const session = await opened()
    const fetched = globalThis.fetch
    globalThis.fetch = () => Promise.reject(new TypeError('Failed to fetch'))
    session.click([1, 0, 0], true)
    await until(() => session.problems.length)
    globalThis.fetch = fetched
    session.addLabel('spleen')
    await clicked(session, 5)
    assert.equal(seen(session), '01100220')
})

test('without locks all labels with clicks are asked for together', async () => {
    const session = await opened({ lock: false })
    await clicked(session, 1)
    session.addLabel('spleen')
    await clicked(session, 5)
    assert.deepEqual(Object.keys(server.asked.at(-1).prompts).sort(), ['liver', 'spleen'])
})

test('a label may be called as objects call their own parts', async () => {
    const session = await opened()
    for (const [name, x] of [['constructor', 1], ['__proto__', 3], ['toString', 5]]) {
        session.addLabel(name)
        assert.deepEqual(session.current, { marks: [], box: null })
        await clicked(session, x)
    }
    assert.equal(seen(session), '02233440')
    await session.saveMap()
    assert.equal(seen(await opened()), '02233440')
})

test('what was said of a state is there again when one goes back to it', async () => {
    const session = await opened()
    await clicked(session, 1)
    const told = session.answer.suggestions
    await clicked(session, 4)
    session.undo()
    assert.deepEqual(session.answer.suggestions, told)
})

test('a browser without room says so once, and what is there is not lost', async () => {
    globalThis.localStorage.most = 10
    const session = await opened()
    await clicked(session, 1)
    await clicked(session, 4)
    assert.deepEqual([session.problems.length, session.unkept], [1, true])
    assert.match(session.problems[0], /no room/)
    assert.equal(seen(session), '01101100')
})

test('a server for review brings no clicks back and keeps none', async () => {
    const session = await opened()
    await clicked(session, 1)
    await session.saveMap()
    const reviewed = await opened({ review: true })
    assert.deepEqual([reviewed.dirty, reviewed.history.canUndo, seen(reviewed)], [false, false, '00000000'])
})

test('another version is shown with labels and undo of its own', async () => {
    server.stored.one = { labels: ['liver', 'spleen'], voxels: [1, 0, 0, 0, 0, 0, 0, 2] }
    const session = await opened()
    await clicked(session, 3)
    await session.submit('')
    server.stored.one = { labels: ['spleen'], voxels: [0, 0, 1, 0, 0, 0, 0, 0] }
    assert.equal(await session.showVersion('v1'), true)
    assert.deepEqual([seen(session), session.history.canUndo], ['00100000', false])
    await clicked(session, 5)
    assert.equal(seen(session), '00100110')
})

test('start anew forgets the clicks and shows what is stored', async () => {
    server.stored.one = { labels: ['liver'], voxels: [1, 0, 0, 0, 0, 0, 0, 0] }
    const session = await opened()
    await clicked(session, 3)
    session.discard()
    assert.deepEqual([seen(session), session.dirty, Object.keys(localStorage)], ['10000000', false, []])
})

test('a click in a locked label is told and not kept, and a stroke leaves out what is not free', async () => {
    const session = await opened()
    await clicked(session, 1)
    session.addLabel('spleen')
    session.click([2, 0, 0], true)
    assert.match(session.problems[0], /belongs to 'liver', which is locked/)
    assert.deepEqual([session.current.marks, server.asked.length], [[], 1])
    session.stroke([[2, 0, 0], [3, 0, 0], [4, 0, 0]], true)
    await settled(session)
    assert.deepEqual([session.current.marks[0].points, seen(session)], [[[3, 0, 0], [4, 0, 0]], '01122200'])
    session.settings.lock = false
    session.click([2, 0, 0], true)
    assert.equal(session.current.marks.length, 2)
})

/** The label map that the prompts of all labels give, each in a place of its own. */
function shownBy(session) {
    const voxels = new Uint8Array(8)
    session.labels.forEach(({ name }, at) => {
        const marks = Object.hasOwn(session.given, name) ? session.given[name].marks : []
        if (!marks.some(({ inside }) => inside)) return
        for (const { points: [[x]], inside } of marks) {
            if (inside) for (const index of [x, x + 1]) voxels[index] = at + 1
            else if (voxels[x] === at + 1) voxels[x] = 0
        }
    })
    return [...voxels].join('')
}

/** What a user may do at any time; `own.session` is another one after the page was opened again. */
const whatever = (own, random) => [
    () => own.session.click([4 * own.session.active + random(3), 0, 0], random(4) > 0),
    () => own.session.click([4 * own.session.active + random(3), 0, 0], random(4) > 0),
    () => own.session.click([4 * own.session.active + random(3), 0, 0], true),
    () => own.session.undo(),
    () => own.session.undo(),
    () => own.session.redo(),
    () => own.session.choose(random(2)),
    () => own.session.clear(),
    () => own.session.cancel(),
    () => void own.session.ask(),
    () => own.session.saveMap(),
    () => (own.session.settings.auto = !own.session.settings.auto),
    () => (own.session.settings.lock = !own.session.settings.lock),
    () => (server.slow = !server.slow),
    () => server.release(),
    () => new Promise((resolve) => setTimeout(resolve, random(5))),
    async () => {
        server.slow = false
        await own.session.open('two', ['liver'], () => {})
        await own.session.open('one', ['liver'], () => {})
    },
    async () => {
        // The browser is closed, and the page opened again.
        clearTimeout(own.session.waiting)
        server.slow = false
        server.release()
        own.session.cancel()
        own.session.dirty = false
        own.session = await opened(own.session.settings)
        own.session.addLabel('spleen')
    }
]

for (let seed = 1; seed <= 12; seed++) {
    test(`whatever is done in whatever order, what is seen in the end is what was given (${seed})`, async () => {
        let state = seed
        const random = (most) => {
            state = (state * 48271) % 2147483647
            return state % most
        }
        const own = { session: await opened() }
        own.session.addLabel('spleen')
        const steps = whatever(own, random)
        for (let step = 0; step < 60; step++) await steps[random(steps.length)]()
        const { session } = own
        const check = async () => {
            session.ask()
            await settled(session)
            assert.equal(seen(session), shownBy(session))
        }
        server.slow = false
        server.release()
        session.settings.auto = true
        await check()
        while (session.history.canUndo) session.undo()
        await check()
        while (session.history.canRedo) {
            session.redo()
            await settled(session)
        }
        await check()
        assert.deepEqual(session.problems, [])
    })
}
