// The page: puts the parts together and says what each action does.

import * as api from './api.js'
import { $, millilitres, toast } from './dom.js'
import { Images } from './images.js'
import { Keys } from './keys.js'
import { boxAround } from './labelmap.js'
import { Learning } from './learning.js'
import { Overlay } from './overlay.js'
import { Panel, fill } from './panel.js'
import { Session } from './session.js'
import * as store from './store.js'
import { TOOLS, Tools } from './tools.js'
import { ACROSS, AXIAL, SAGITTAL, Viewer } from './viewer.js'

const DEFAULTS = {
    auto: true, lock: true, correct: true, doubt: false, outline: false, crosshair: true, hints: true,
    opacity: 0.45, strategy: null, ctWindow: 'auto', client: '', theme: 'auto', next: null, layout: 'one'
}
const BUSY_AFTER = 250 // milliseconds before a running answer is shown
const LAYOUTS = ['one', 'equal', 'alone']
const STARTS = { global: 'a box', local: 'clicks' }

const settings = { ...DEFAULTS, ...store.settings() }
let server = null
let plane = AXIAL
let corner = null // the first corner of a box that is given by keys
let coming = null // what is said to be loading
let started = null // the viewer's promise to draw
const timers = {}

const viewer = new Viewer($('picture'), () => overlay.draw())
const overlay = new Overlay($('over'), viewer)
const session = new Session(viewer, settings)
const images = new Images((id) => open(id))
const panel = new Panel(session, settings, {
    look,
    hint: toHint,
    hintOf: () => hint(),
    problem,
    windowed
})
const learning = new Learning({ look: refresh, images, session, open, problem })
const tools = new Tools($('over'), viewer, overlay, {
    click: (voxel, inside) => session.click(voxel, inside),
    stroke: (points, inside) => session.stroke(points, inside),
    box: (edges, axis) => session.box(edges, axis),
    editBox: (edges, done) => {
        if (done) session.editBox(edges)
        else {
            overlay.show.prompts = { ...session.current, box: { edges, flat: null } }
            overlay.draw()
        }
    },
    moved: () => where(viewer.crosshair),
    hover: (over, voxel) => {
        if (over !== null) plane = over in ACROSS ? over : plane
        if (overlay.show.hover !== over) {
            overlay.show.hover = over
            overlay.draw()
        }
        where(voxel ?? (viewer.opened ? viewer.crosshair : null))
    },
    scroll: (on, steps) => scroll(on, steps),
    windowed,
    layout: (main) => arrange('one', main),
    released: refreshOverlay
})

// What is seen --------------------------------------------------------------------------------------------

function look() {
    overlay.crosshair = settings.crosshair
    viewer.blend(settings.opacity, settings.outline)
    store.keepSettings(settings)
    refreshOverlay()
    if (session.map) panel.draw()
    $('annotate').inert = !session.map
}

function refreshOverlay() {
    overlay.show.prompts = settings.review ? null : session.current
    overlay.show.colour = session.label?.colour ?? '#fff'
    overlay.show.suggestion = settings.hints ? hint() : null
    const flat = session.current.box?.flat ?? null
    overlay.show.guess = flat === null ? null : session.answer?.boxes?.[session.label.name]
    overlay.setDoubt(settings.doubt ? session.answer?.parts?.doubt : null)
    overlay.draw()
}

const hint = () => session.answer?.suggestions?.[session.label?.name] ?? null

function toHint() {
    const voxel = hint()
    if (voxel) moveTo(voxel)
}

function moveTo(voxel) {
    viewer.crosshair = voxel
    where(voxel)
}

function scroll(on, steps) {
    plane = on
    const voxel = viewer.crosshair
    voxel[ACROSS[on]] = viewer.bounded(voxel[ACROSS[on]] + steps, ACROSS[on])
    moveTo(voxel)
}

function where(voxel) {
    if (!voxel) {
        $('where').textContent = $('under').textContent = ''
        return
    }
    const mm = session.about.affine.slice(0, 3).map((row) => row[3] + voxel.reduce((sum, p, at) => sum + row[at] * p, 0))
    const unit = session.about.modality === 'ct' ? ' HU' : ''
    const value = viewer.value(voxel)
    $('where').textContent = `${voxel.join(', ')}   ${mm.map((p) => p.toFixed(1)).join(', ')} mm   ${Math.round(value * 1000) / 1000}${unit}`
    const label = session.labels[session.map.at(voxel) - 1]
    $('under').textContent = label ? label.name : ''
}

function windowed(range) {
    viewer.window = range
    panel.showWindow(range)
}

function arrange(layout, main = viewer.main) {
    settings.layout = layout
    plane = main
    viewer.arrange(layout, main)
    store.keepSettings(settings)
}

const otherLayout = () => arrange(LAYOUTS[(LAYOUTS.indexOf(settings.layout) + 1) % LAYOUTS.length])

function theme(choice) {
    settings.theme = choice
    const light = choice === 'light' || (choice === 'auto' && matchMedia('(prefers-color-scheme: light)').matches)
    document.documentElement.dataset.theme = light ? 'light' : 'dark'
    store.keepSettings(settings)
}

function choose(tool) {
    tools.tool = tool
    overlay.show.handles = tool === 'box'
    overlay.draw()
    corner = null
    for (const button of document.querySelectorAll('#tools [data-tool]')) {
        button.setAttribute('aria-pressed', String(button.dataset.tool === tool))
    }
}

function problem(error) {
    if (error.status === 401) logIn()
    else toast(error.message, { kind: 'bad' })
    if (error.status === 0 && server) away()
}

// Images ----------------------------------------------------------------------------------------------------

async function open(id) {
    if (session.submitting || (session.unkept && !(await leaves()))) return
    tools.cancel()
    corner = null
    for (const old of document.querySelectorAll('.toast.bad')) old.remove()
    const done = loading(`Opening ${images.find(id)?.title ?? id}`)
    try {
        const opened = await session.open(id, server.labels, (part) => ($('loading-part').value = part))
        if (!opened) return
        const { about } = session
        images.mark(id)
        $('empty').hidden = true
        history.replaceState(null, '', `#${encodeURIComponent(id)}`)
        $('title').textContent = images.find(id)?.title ?? id
        $('title').title = id
        const step = about.spacing.map((mm) => Number(mm.toFixed(2))).join(' × ')
        $('facts').textContent = `${about.modality === 'unknown' ? '' : `${about.modality.toUpperCase()} · `}${about.shape.join(' × ')} · ${step} mm`
        $('facts').title = $('facts').textContent
        panel.showWindow(about.window)
        arrange(settings.layout, AXIAL)
        look()
        where(viewer.crosshair)
        if (opened === 'restored') {
            toast('Your clicks are back. They were not submitted.', { action: { name: 'Start anew', run: () => session.discard() } })
        }
        for (const note of session.notes) toast(note)
    } catch (error) {
        problem(error)
    } finally {
        done()
    }
}

/** Say what is waited for. @returns ends it, unless something else is waited for by then */
function loading(text) {
    const mine = (coming = Symbol(text))
    $('loading').hidden = false
    $('loading-text').textContent = text
    $('loading-part').removeAttribute('value')
    return () => {
        if (coming === mine) $('loading').hidden = true
    }
}

/** Whether the annotator gives up what this browser has no room for. */
function leaves() {
    const sheet = $('ask-leave')
    sheet.returnValue = ''
    if (!sheet.open) sheet.showModal()
    return new Promise((resolve) => sheet.addEventListener('close', () => resolve(sheet.returnValue === 'leave'), { once: true }))
}

async function next() {
    if ($('next').disabled) return
    $('next').disabled = true
    try {
        const found = await api.next($('strategy').value)
        if (!found.id && images.images.length) toast('Every image is labelled.', { kind: 'good' })
        else if (!found.id) toast('There is no image yet.')
        else await open(found.id)
    } catch (error) {
        problem(error)
    } finally {
        $('next').disabled = false
    }
}

async function submit() {
    if (!session.ready) return
    const done = loading('Submitting')
    try {
        const told = await session.submit(settings.client).finally(done)
        const lines = told.labels.map(({ name, ml }) => `${name}: ${millilitres(ml)}`)
        const replaced = told.learning?.replaced
        if (replaced) lines.push(`It replaces the label of ${replaced.by}, which is kept.`)
        toast(`Submitted. The server understood:\n${lines.join('\n')}`, { kind: 'good', seconds: 15, action: { name: 'Next image', run: next } })
        await images.load()
    } catch (error) {
        problem(error)
    }
}

// The server ------------------------------------------------------------------------------------------------

async function refresh() {
    clearTimeout(timers.state)
    let found
    try {
        found = await api.state()
    } catch (error) {
        if (server && error.status === 0) away()
        throw error
    }
    server = found
    settings.review = server.review
    const [text, kind] = server.review
        ? ['Review, read-only', '']
        : server.problem
          ? [server.problem, 'warn']
          : server.training
            ? ['Ready, training', 'good']
            : ['Ready', 'good']
    $('server').textContent = text
    $('server').className = `pill ${kind}`
    if (server.problem || server.training) again(server.problem ? 1500 : 5000)
    if (!server.problem && timers.away) {
        timers.away = false
        // What it was asked when it went is asked for again.
        if (settings.auto && session.history.stale.length && !session.asking) session.ask()
    }
    return server
}

/** The server does not answer: look for it until it does. */
function away() {
    timers.away = true
    $('server').textContent = 'Not reachable'
    $('server').className = 'pill bad'
    again(2000)
}

function again(milliseconds) {
    clearTimeout(timers.state)
    timers.state = setTimeout(() => refresh().catch((error) => error.status !== 0 && problem(error)), milliseconds)
}

function busy() {
    clearTimeout(timers.busy)
    clearInterval(timers.count)
    if (!session.asking) {
        $('busy').hidden = true
        return
    }
    const { since } = session.asking
    const show = () => {
        $('busy').hidden = false
        $('busy-text').textContent = `Segmenting, ${((performance.now() - since) / 1000).toFixed(1)} s`
    }
    timers.busy = setTimeout(() => {
        show()
        timers.count = setInterval(show, 100)
    }, BUSY_AFTER)
}

function answered({ milliseconds, notes = [], experts = {} }) {
    if (milliseconds) {
        // By default both experts may answer: what the server names is where they began.
        const from = [...new Set(Object.values(experts))].flatMap((name) => STARTS[name] ?? []).join(', ')
        $('last').textContent = `Answer in ${(milliseconds / 1000).toFixed(2)} s${from ? ` (from ${from})` : ''}`
    }
    for (const note of notes) toast(note)
}

function logIn() {
    const sheet = $('log-in')
    if (sheet.open) return
    sheet.showModal()
    $('log-in-form').onsubmit = async (event) => {
        event.preventDefault()
        try {
            await api.logIn($('user').value, $('password').value)
            // Clicks that were refused are still there.
            sheet.close()
            $('password').value = $('log-in-problem').textContent = ''
            if (!session.map) await load()
            else if (session.history.stale.length) session.ask()
            await refresh()
        } catch (error) {
            $('log-in-problem').textContent = error.message
        }
    }
}

// Keys --------------------------------------------------------------------------------------------------------

/** A click, or a corner of a box, at the crosshair. */
function press(inside) {
    const voxel = viewer.crosshair
    if (tools.tool !== 'box') session.click(voxel, inside)
    else if (!corner) {
        corner = voxel
        toast('First corner. Go to the opposite one and press Space again.')
    } else {
        const edges = boxAround(corner, voxel)
        const flat = [0, 1, 2].filter((axis) => voxel[axis] === corner[axis])
        corner = null
        if (flat.length > 1) toast('These corners span no box: they share more than one side.')
        else if (flat.length) session.box(edges, flat[0])
        else session.editBox(edges)
    }
}

function step(dx, dy) {
    const [across, upward] = [0, 1, 2].filter((axis) => axis !== ACROSS[plane])
    const voxel = viewer.crosshair
    // Right is the patient's left in axial and coronal planes.
    voxel[across] = viewer.bounded(voxel[across] + (plane === SAGITTAL ? dx : -dx), across)
    voxel[upward] = viewer.bounded(voxel[upward] + dy, upward)
    moveTo(voxel)
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }
const when = (action) => (event) => session.ready && !settings.review && action(event)
const shown = (action) => (event) => session.ready && action(event)

const KEYS = [
    ['Tools', 'c', 'click', () => choose('click')],
    ['Tools', 'b', 'box', () => choose('box')],
    ['Tools', 's', 'scribble', () => choose('scribble')],
    ['Tools', 'v', 'look around', () => choose('move')],
    ['Tools', 'Space', 'inside at the crosshair, or a corner of a box', when(() => press(true))],
    ['Tools', 'Shift+Space', 'outside at the crosshair', when(() => press(false))],
    ['Answers', 'Enter', 'answer now', when(() => session.ask())],
    ['Answers', 'Escape', 'cancel the answer', () => session.cancel()],
    ['Answers', 'Ctrl+z u', 'undo', when(() => session.undo())],
    ['Answers', 'Ctrl+Shift+z Ctrl+y', 'redo', when(() => session.redo())],
    ['Answers', 'Delete', "forget the label's clicks", when(() => session.clear())],
    ['Answers', 'g', 'go where the server would click next', shown(toHint)],
    ['Answers', 'd', 'map of doubt', when(() => panel.switched('doubt', !settings.doubt))],
    ['Labels', '1 2 3 4 5 6 7 8 9', 'choose a label', shown((event) => session.choose(Number(event.key) - 1))],
    ['Labels', 'n', 'add a label', when(() => $('name').focus())],
    ['Labels', 'l', 'lock other labels', when(() => panel.switched('lock', !settings.lock))],
    ['Labels', 'h', 'hide or show the label', shown(() => session.toggle(session.active))],
    ['View', 'ArrowLeft ArrowRight ArrowUp ArrowDown', 'crosshair', shown(({ key }) => step(...ARROWS[key]))],
    ['View', 'PageUp . PageDown ,', 'slices', shown(({ key }) => scroll(plane, ['PageUp', '.'].includes(key) ? 1 : -1))],
    ['View', 'p', 'next plane', shown(() => arrange(settings.layout, (plane + 1) % 3))],
    ['View', 'm', 'arrangement', shown(otherLayout)],
    ['View', '+ = -', 'zoom', shown(({ key }) => viewer.zoom(key === '-' ? 0.8 : 1.25))],
    ['View', '0', 'whole image', shown(() => viewer.resetView())],
    ['View', 'w', 'next window', shown(() => panel.nextPreset())],
    ['View', 'o', 'outlines only', () => panel.switched('outline', !settings.outline)],
    ['View', '[ ]', 'less or more opacity', ({ key }) => opacity(key === '[' ? -0.1 : 0.1)],
    ['View', 'x', 'crosshair on or off', () => panel.switched('crosshair', !settings.crosshair)],
    ['Images', 'Shift+n', 'next image', shown(next)],
    ['Images', 'Ctrl+Enter', 'submit', when(submit)],
    ['Page', 'a', 'learning', () => learning.toggle()],
    ['Page', 't', 'light or dark', () => otherTheme()],
    ['Page', '?', 'this sheet', () => $('help-sheet').showModal()]
]

function opacity(by) {
    settings.opacity = Math.min(1, Math.max(0, Math.round((settings.opacity + by) * 20) / 20))
    $('opacity').value = settings.opacity
    look()
}

const otherTheme = () => theme(document.documentElement.dataset.theme === 'light' ? 'dark' : 'light')

// Wiring ------------------------------------------------------------------------------------------------------

session.addEventListener('change', () => {
    panel.draw()
    refreshOverlay()
    if (session.map) where(viewer.crosshair)
    images.refresh()
    $('work').hidden = !session.dirty
    $('work').textContent = 'Not submitted'
})
session.addEventListener('busy', busy)
session.addEventListener('answer', ({ detail }) => answered(detail))
session.addEventListener('problem', ({ detail }) => problem(detail))
session.addEventListener('advice', ({ detail }) => toast(detail))

for (const tool of TOOLS) document.querySelector(`[data-tool=${tool}]`).addEventListener('click', () => choose(tool))
const BUTTONS = {
    undo: () => session.undo(),
    redo: () => session.redo(),
    cancel: () => session.cancel(),
    reset: () => viewer.resetView(),
    admin: () => learning.toggle(),
    help: () => $('help-sheet').showModal(),
    layout: otherLayout,
    theme: otherTheme,
    next,
    submit
}
for (const [id, action] of Object.entries(BUTTONS)) $(id).addEventListener('click', action)

window.addEventListener('beforeunload', (event) => session.dirty && event.preventDefault())
document.addEventListener('visibilitychange', () => document.hidden && session.saveMap())
window.addEventListener('hashchange', () => {
    const asked = images.find(wanted())
    if (asked && asked.id !== session.image) open(asked.id)
})

/** The image that the address names. */
function wanted() {
    try {
        return decodeURIComponent(location.hash.slice(1))
    } catch {
        return ''
    }
}

async function begin() {
    theme(settings.theme)
    choose('click')
    new Keys(KEYS)
    $('strategy').addEventListener('change', () => {
        settings.next = $('strategy').value
        $('strategy').title = server.next[settings.next]
        store.keepSettings(settings)
    })
    // What cannot be had without log-in is asked for again after it.
    started = viewer.start()
    await load()
    document.body.dataset.ready = 'true'
}

async function load() {
    try {
        // Side by side: none waits for what another tells.
        await Promise.all([refresh(), images.load(), started])
        panel.offer(server)
        fill($('strategy'), Object.keys(server.next), settings.next)
        $('strategy').title = server.next[$('strategy').value] ?? ''
        document.body.classList.toggle('review', server.review)
        tools.readOnly = server.review
        if (server.review) choose('move')
        const first = images.find(wanted()) ?? images.images.find((image) => !image.done) ?? images.images[0]
        if (first) await open(first.id)
        $('empty').hidden = viewer.opened
        $('empty').textContent = first
            ? 'No image is open. Choose one on the left.'
            : 'There is no image yet. Put one into the studies folder or the archive, then reload this page.'
    } catch (error) {
        problem(error)
    }
}

window.dualclickmed = { session, viewer, settings, learning }
begin()
