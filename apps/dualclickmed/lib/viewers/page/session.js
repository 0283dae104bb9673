// One image in work: its labels, what was given for each, the label map, and the server's answers.

import * as api from './api.js'
import { History } from './history.js'
import { LabelMap, heldBy, merged, sizeOf, EMPTY } from './labelmap.js'
import * as prompts from './prompts.js'
import * as store from './store.js'

/** Colours that are told apart on grey, the first labels' farthest. */
export const COLOURS = [
    ...['#ff6b5e', '#4cc9f0', '#ffd166', '#7ae582', '#c792ff', '#ff9f43', '#5eead4', '#ff7ac6'],
    ...['#a3e635', '#6f9dff', '#f4a6a0', '#d4b483', '#2dd4a7', '#e879f9', '#facc15', '#94a3ff']
]
const MOST_LABELS = 254
const SAVE_AFTER = 400 // milliseconds
const REFUSED = [400, 413, 422] // statuses that say what is wrong with what was given

export const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16))

/** Events: `change` (anything that panels show), `busy`, `answer`, `problem`. */
export class Session extends EventTarget {
    constructor(viewer, settings) {
        super()
        Object.assign(this, { viewer, settings, image: null, labels: [], active: 0, dirty: false })
        this.history = new History()
        this.asking = null
        this.answer = null
    }

    get given() {
        return this.history.now.prompts
    }

    get label() {
        return this.labels[this.active] ?? null
    }

    get current() {
        return this.given[this.label?.name] ?? prompts.none()
    }

    get millilitres() {
        return this.about.spacing.reduce((volume, step) => volume * step, 1) / 1000
    }

    volumeOf(at) {
        return this.map.counts[at + 1] * this.millilitres
    }

    tell(kind, detail) {
        this.dispatchEvent(new CustomEvent(kind, { detail }))
    }

    // Opening ------------------------------------------------------------------------------------------------

    /** Show an image with its stored labels, and what was left unfinished. */
    async open(image, known, progress) {
        this.cancel()
        const opening = (this.opening = Symbol(image))
        // The volume is asked for first: the server reads it once for all three.
        const [about, bytes] = await Promise.all([api.describe(image), api.volume(image, progress)])
        if (opening !== this.opening) return false
        await this.viewer.open(bytes, about)
        Object.assign(this, { image, about, dirty: false, answer: null, doubt: null, notes: [] })
        this.map = new LabelMap(about.shape)
        this.stored = new LabelMap(about.shape)
        this.history = new History()
        this.labels = []
        let problem = null
        try {
            const found = await api.stored(image)
            if (opening !== this.opening) return false
            for (const name of found.labels) this.addLabel(name, false)
            if (found.parts.labels) this.stored.write(found.parts.labels.box, found.parts.labels.voxels)
            this.copyStored()
            this.notes = found.notes
        } catch (error) {
            problem = error
        }
        if (!this.labels.length) this.addLabel(known[0] ?? 'object', false)
        this.active = 0
        const restored = await this.restore()
        this.show()
        this.tell('change')
        if (problem) this.tell('problem', problem)
        return restored ? 'restored' : true
    }

    copyStored() {
        const box = this.stored.filled()
        if (sizeOf(box)) this.map.write(box, this.stored.cut(box))
    }

    /** Show another version of the image's label, for reviewing. */
    async showVersion(version) {
        const found = await api.stored(this.image, version)
        this.map = new LabelMap(this.about.shape)
        this.labels = []
        for (const name of found.labels) this.addLabel(name, false)
        if (found.parts.labels) this.map.write(found.parts.labels.box, found.parts.labels.voxels)
        this.show()
        this.tell('change')
    }

    show() {
        this.recolour()
        this.viewer.paint(this.map)
    }

    recolour() {
        this.viewer.colour(this.labels.map(({ colour, shown }) => [...rgb(colour), shown]))
    }

    // Labels -------------------------------------------------------------------------------------------------

    /** Add a label, or choose it if it is there. */
    addLabel(name, choose = true) {
        const clean = name.trim()
        let at = this.labels.findIndex((label) => label.name.toLowerCase() === clean.toLowerCase())
        if (at < 0) {
            if (this.labels.length >= MOST_LABELS) throw new Error(`At most ${MOST_LABELS} labels fit one image.`)
            const colour = COLOURS[this.labels.length % COLOURS.length]
            at = this.labels.push({ name: clean, colour, shown: true }) - 1
        }
        if (choose) {
            this.recolour()
            this.choose(at)
        }
        return at
    }

    choose(at) {
        if (!this.labels[at]) return
        this.active = at
        this.tell('change')
        this.save()
    }

    toggle(at) {
        this.labels[at].shown = !this.labels[at].shown
        this.recolour()
        this.tell('change')
    }

    paintLabel(at, colour) {
        this.labels[at].colour = colour
        this.recolour()
        this.tell('change')
    }

    // Prompts ------------------------------------------------------------------------------------------------

    click(voxel, inside) {
        this.viewer.crosshair = voxel
        this.give(prompts.clicked(this.current, voxel, inside))
    }

    stroke(points, inside) {
        this.give(prompts.scribbled(this.current, points, inside))
    }

    box(edges, axis) {
        this.give(prompts.boxed(this.current, edges, axis))
    }

    editBox(edges) {
        this.give({ ...this.current, box: { edges, flat: null } })
    }

    /** Forget what was given for the active label; what is stored of it stays. */
    clear() {
        if (!prompts.isEmpty(this.current)) this.give(prompts.none())
    }

    give(given) {
        const { name } = this.label
        this.history.push({ ...this.given, [name]: given }, name)
        this.changed()
        if (this.settings.auto) this.ask()
    }

    changed() {
        this.dirty = true
        this.answer = null
        this.tell('change')
        this.save()
    }

    undo() {
        this.step(this.history.canUndo && (() => this.history.undo(this.map)))
    }

    redo() {
        this.step(this.history.canRedo && (() => this.history.redo(this.map)))
    }

    step(move) {
        if (!move) return
        this.cancel()
        const { label, boxes } = move()
        const at = this.labels.findIndex(({ name }) => name === label)
        if (at >= 0) this.active = at
        for (const box of boxes) this.viewer.paint(this.map, box)
        this.changed()
        if (this.history.stale.length) this.ask(this.history.stale)
    }

    // Answers ------------------------------------------------------------------------------------------------

    /**
     * Ask the server for labels, and where others are not locked for all that have prompts.
     * @param {string[]} wanted the active one, and all that were given something which has no answer yet
     */
    async ask(wanted = [this.label.name, ...this.history.stale]) {
        this.cancel()
        const others = this.settings.lock ? [] : Object.keys(this.given).filter((name) => !prompts.isEmpty(this.given[name]))
        const valueOf = (label) => this.labels.findIndex((one) => one.name === label) + 1
        const names = [...new Set([...wanted, ...others])].filter(valueOf)
        const active = new Set(names.map(valueOf))
        const start = this.settings.correct ? this.stored : null
        const begun = (label) => start !== null && start.counts[valueOf(label)] > 0
        const asked = names.filter((one) => prompts.canAsk(this.given[one], begun(one)))
        const held = heldBy(this.map, start, active)
        if (!asked.length) {
            this.take({ parts: {} }, held, active, names)
            return
        }
        const running = (this.asking = { abort: new AbortController(), since: performance.now() })
        this.tell('busy')
        try {
            const params = {
                labels: this.labels.map((label) => label.name),
                prompts: Object.fromEntries(asked.map((one) => [one, prompts.toServer(this.given[one])])),
                ...(held ? { held: held.box } : {}),
                strategy: this.settings.strategy,
                window: this.settings.ctWindow,
                doubt: this.settings.doubt
            }
            const packed = held ? await api.gzip(held.voxels) : null
            const found = await api.segment(this.image, params, packed, running.abort.signal)
            if (this.asking !== running) return
            this.asking = null
            this.take(found, held, active, names, performance.now() - running.since)
        } catch (error) {
            if (this.asking !== running) return
            this.asking = null
            // What was refused is not sent again with the next label's click.
            if (REFUSED.includes(error.status)) this.history.settle(names)
            this.tell('busy')
            if (error.name !== 'AbortError') this.tell('problem', error)
        }
    }

    take(found, held, active, names, milliseconds = 0) {
        const answer = found.parts.labels ?? { box: EMPTY, voxels: new Uint8Array(0) }
        const { box, voxels } = merged(this.map, held, active, answer)
        const change = this.map.write(box, voxels)
        this.history.answer(change, names)
        if (change) this.viewer.paint(this.map, change.box)
        this.answer = { ...found, milliseconds }
        this.tell('busy')
        this.tell('answer', this.answer)
        this.tell('change')
        this.save()
    }

    cancel() {
        if (!this.asking) return false
        const { abort } = this.asking
        this.asking = null
        abort.abort()
        this.tell('busy')
        return true
    }

    // Keeping ------------------------------------------------------------------------------------------------

    save() {
        clearTimeout(this.saving)
        if (!this.dirty || this.settings.review) return
        this.saving = setTimeout(() => this.saveNow(), SAVE_AFTER)
    }

    async saveNow() {
        clearTimeout(this.saving)
        if (!this.dirty || !this.image) return
        const box = this.map.filled()
        const { image, labels, active, history } = this
        const packed = sizeOf(box) ? await api.gzip(this.map.cut(box)) : new Uint8Array(0)
        store.keep(image, { shape: this.about.shape, labels, active, states: history.kept(), box }, packed)
    }

    /** What was left unfinished when the page was closed. */
    async restore() {
        const kept = store.kept(this.image)
        if (!kept || String(kept.shape) !== String(this.about.shape)) return false
        this.labels = kept.labels
        this.active = kept.active
        if (kept.packed) {
            this.map = new LabelMap(this.about.shape)
            const voxels = await api.gunzip(kept.packed)
            if (sizeOf(kept.box)) this.map.write(kept.box, voxels)
        }
        this.history = History.restored(kept.states, Boolean(kept.packed))
        this.dirty = true
        if (this.history.stale.length) queueMicrotask(() => this.ask(this.history.stale))
        return true
    }

    /** Start from what is stored on the server. */
    discard() {
        this.cancel()
        store.forget(this.image)
        this.map = new LabelMap(this.about.shape)
        this.copyStored()
        this.history = new History()
        this.dirty = false
        this.answer = null
        this.show()
        this.tell('change')
    }

    /** Store the label map as the image's final label. @returns what the server understood */
    async submit(client) {
        const box = this.map.filled()
        if (!sizeOf(box)) throw new Error('There is nothing to submit yet: click inside a structure first.')
        const clicks = Object.values(this.given).reduce((sum, given) => sum + prompts.count(given), 0)
        const labels = this.labels.map((label) => label.name)
        const voxels = this.map.cut(box)
        const image = this.image
        const told = await api.submit(image, { labels, box, clicks, client }, await api.gzip(voxels))
        store.forget(image)
        if (image !== this.image) return told
        this.dirty = false
        clearTimeout(this.saving)
        this.stored = new LabelMap(this.about.shape)
        this.stored.write(box, voxels)
        this.tell('change')
        return told
    }
}
