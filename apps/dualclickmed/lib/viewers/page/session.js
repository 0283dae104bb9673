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

const noVoxels = () => new Uint8Array(0)

/** Tells an image from another one of the same name. */
const printOf = ({ shape, affine, range }) => JSON.stringify([shape, affine, range])

/** Events: `change` (anything that panels show), `busy`, `answer`, `advice` (a sentence), `problem` (an Error). */
export class Session extends EventTarget {
    constructor(viewer, settings) {
        super()
        Object.assign(this, { viewer, settings, image: null, labels: [], active: 0, dirty: false, unkept: false })
        this.history = new History()
        this.late = new Map() // labels whose voxels changed since the label map was kept, and when
        this.changes = 0
        this.asking = null
        this.opening = null
        this.submitting = false
        this.answer = null
    }

    /** Whether an image is there to be worked on; while another one comes, or this one is submitted, it is not. */
    get ready() {
        return Boolean(this.map) && !this.opening && !this.submitting
    }

    get given() {
        return this.history.now.prompts
    }

    get label() {
        return this.labels[this.active] ?? null
    }

    get current() {
        return prompts.of(this.given, this.label?.name)
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

    /**
     * Show an image with its stored labels, and what was left unfinished.
     * @returns false if another one was chosen meanwhile, 'restored' with unfinished work, else true
     */
    async open(image, known, progress) {
        this.opening?.abort()
        const opening = (this.opening = new AbortController())
        const { signal } = opening
        this.cancel()
        try {
            await this.saveMap()
            // The volume is asked for first: the server reads it once for all three.
            const [about, bytes] = await Promise.all([api.describe(image, signal), api.volume(image, progress, signal)])
            const [found, picture] = await Promise.all([this.find(image, null, signal), this.viewer.read(bytes, about)])
            const kept = this.settings.review ? null : await this.kept(image, about)
            if (signal.aborted) return false
            this.opening = null
            this.begin(image, about, picture, found, kept, known)
            return kept ? 'restored' : true
        } catch (error) {
            if (signal.aborted) return false
            this.opening = null
            // The former image is still there, and waits for the answer that was cancelled.
            if (this.settings.auto && this.history.stale.length) this.ask()
            throw error
        }
    }

    /** The stored labels; an image whose labels cannot be read is shown without. */
    async find(image, version, signal) {
        try {
            return await api.stored(image, version, signal)
        } catch (error) {
            return { labels: [], notes: [], parts: {}, problem: error }
        }
    }

    /** What was left unfinished of this very image, with the label map's voxels. */
    async kept(image, about) {
        const kept = store.kept(image)
        if (!kept || kept.print !== printOf(about)) return null
        if (!kept.map) return { ...kept, voxels: null }
        const { box, packed } = kept.map
        return { ...kept, voxels: sizeOf(box) ? await api.gunzip(packed).catch(() => null) : noVoxels() }
    }

    /** From one image to the next in one go, so that nothing is ever half of the one and half of the other. */
    begin(image, about, picture, found, kept, known) {
        this.viewer.show(picture, about)
        Object.assign(this, { image, about, notes: found.notes, dirty: Boolean(kept), unkept: false })
        this.labels = kept?.labels ?? []
        this.active = kept?.active ?? 0
        this.takeOver(found)
        if (!this.labels.length) this.addLabel(known[0] ?? 'object', false)
        this.late.clear()
        if (kept) this.restore(kept)
        this.show()
        this.tell('change')
        if (found.problem) this.tell('problem', found.problem)
        const { stale } = this.history
        if (stale.length && (this.settings.auto || !kept.voxels)) this.ask(stale)
    }

    /** Begin with labels that are stored. Those of the file have numbers of their own, names say which is which. */
    takeOver(found) {
        const part = found.parts.labels
        const values = Uint8Array.from([0, ...found.labels.map((name) => this.addLabel(name, false) + 1)])
        this.map = new LabelMap(this.about.shape)
        this.stored = new LabelMap(this.about.shape)
        this.history = new History()
        this.answer = null
        if (part && sizeOf(part.box)) this.stored.write(part.box, part.voxels.map((value) => values[value]))
        this.copyStored()
    }

    restore({ states, late, voxels, map }) {
        if (voxels) {
            this.map = new LabelMap(this.about.shape)
            this.map.write(map.box, voxels)
        }
        this.history = History.restored(states, voxels ? late : null)
        this.outdated(late)
    }

    /** The label map that was kept shows something else of these labels. */
    outdated(names) {
        this.changes++
        for (const name of names) this.late.set(name, this.changes)
    }

    copyStored() {
        const box = this.stored.filled()
        if (sizeOf(box)) this.map.write(box, this.stored.cut(box))
    }

    /** Show another version of the image's label, for reviewing. */
    async showVersion(version) {
        const { image } = this
        this.cancel()
        const found = await api.stored(image, version)
        if (image !== this.image || this.dirty || this.opening) return false
        this.labels = []
        this.active = 0
        this.takeOver(found)
        this.show()
        this.tell('change')
        return true
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
        if (!this.labels[at]) return
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
        if (!inside || this.free([voxel]).length) this.give(prompts.clicked(this.current, voxel, inside))
    }

    stroke(points, inside) {
        const given = inside ? this.free(points) : points
        if (given.length) this.give(prompts.scribbled(this.current, given, inside))
    }

    /** The voxels that are not a locked label's. One that is would be refused, and with it every further click. */
    free(points) {
        if (!this.settings.lock || !this.ready) return points
        const taken = (point) => ![0, this.active + 1].includes(this.map.at(point))
        const free = points.filter((point) => !taken(point))
        if (!free.length) {
            const { name } = this.labels[this.map.at(points[0]) - 1]
            this.tell('advice', `This place belongs to '${name}', which is locked: click elsewhere, or unlock other labels (L).`)
        }
        return free
    }

    box(edges, axis) {
        this.give(prompts.boxed(this.current, edges, axis))
    }

    editBox(edges) {
        this.give(prompts.edited(this.current, edges))
    }

    /** Forget what was given for the active label; what is stored of it stays. */
    clear() {
        if (!prompts.isEmpty(this.current)) this.give(prompts.none())
    }

    give(given) {
        if (!this.ready || !this.label) return
        const { name } = this.label
        this.history.push({ ...this.given, [name]: given }, name)
        this.changed()
        if (this.settings.auto) this.ask()
    }

    /** An answer that is still to come is about what was given before. */
    changed() {
        this.cancel()
        this.dirty = true
        this.answer = this.history.now.told ?? null
        this.save()
        this.tell('change')
    }

    undo() {
        if (this.ready && this.history.canUndo) this.step(this.history.undo(this.map))
    }

    redo() {
        if (this.ready && this.history.canRedo) this.step(this.history.redo(this.map))
    }

    step({ label, boxes, known }) {
        const at = this.labels.findIndex(({ name }) => name === label)
        if (at >= 0) this.active = at
        for (const box of boxes) this.viewer.paint(this.map, box)
        if (boxes.length) this.outdated(this.labels.map(({ name }) => name))
        this.changed()
        // Where answers do not come by themselves, what was seen before is seen again; but it has to be known.
        if (this.history.stale.length && (this.settings.auto || !known)) this.ask(this.history.stale)
    }

    // Answers ------------------------------------------------------------------------------------------------

    /**
     * Ask the server for labels, and where others are not locked for all that have prompts.
     * @param {string[]} wanted the active one, and all that were given something which has no answer yet
     */
    async ask(wanted = [this.label?.name, ...this.history.stale]) {
        if (!this.ready) return
        this.cancel()
        const empty = (name) => prompts.isEmpty(prompts.of(this.given, name))
        const others = this.settings.lock ? [] : Object.keys(this.given).filter((name) => !empty(name))
        const valueOf = (label) => this.labels.findIndex((one) => one.name === label) + 1
        const names = [...new Set([...wanted, ...others])].filter(valueOf)
        const active = new Set(names.map(valueOf))
        // A label that nothing is given for is what is stored of it.
        const begun = new Set(names.filter((name) => this.settings.correct || empty(name)).map(valueOf))
        const starts = (name) => begun.has(valueOf(name)) && this.stored.counts[valueOf(name)] > 0
        const asked = names.filter((name) => prompts.canAsk(prompts.of(this.given, name), starts(name)))
        const held = heldBy(this.map, this.stored, active, begun)
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
        const answer = found.parts.labels ?? { box: EMPTY, voxels: noVoxels() }
        const { box, voxels } = merged(this.map, held, active, answer)
        const change = this.map.write(box, voxels)
        this.history.answer(change, names)
        if (change) {
            this.viewer.paint(this.map, change.box)
            this.outdated(names)
        }
        const { suggestions, boxes } = found
        this.history.now.told = { suggestions, boxes }
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

    /** Keep what was given, now, and the label map when nothing has happened for a moment. */
    save() {
        clearTimeout(this.waiting)
        if (!this.dirty || this.settings.review) return
        this.keep()
        this.waiting = setTimeout(() => this.saveMap(), SAVE_AFTER)
    }

    keep() {
        const { image, labels, active, history } = this
        const work = { print: printOf(this.about), labels, active, states: history.kept(), late: [...this.late.keys()] }
        const unkept = !store.keep(image, work)
        if (unkept && !this.unkept) {
            this.tell('problem', new Error('This browser has no room for unfinished work: submit before you leave.'))
        }
        this.unkept = unkept
    }

    async saveMap() {
        clearTimeout(this.waiting)
        if (!this.dirty || this.settings.review) return
        // All of one moment: what comes while it is packed is kept the next time.
        const { image, changes } = this
        const box = this.map.filled()
        const saving = (this.saving = Symbol(image))
        const packed = sizeOf(box) ? await api.gzip(this.map.cut(box)) : noVoxels()
        if (this.saving !== saving || !this.dirty || !store.keepMap(image, box, packed)) return
        for (const [name, when] of this.late) if (when <= changes) this.late.delete(name)
        this.keep()
    }

    /** Start from what is stored on the server. */
    discard() {
        if (!this.ready) return
        this.cancel()
        this.finish()
        this.map = new LabelMap(this.about.shape)
        this.copyStored()
        this.history = new History()
        this.answer = null
        this.show()
        this.tell('change')
    }

    /** Nothing is unfinished any more. */
    finish() {
        clearTimeout(this.waiting)
        store.forget(this.image)
        this.saving = null
        this.late.clear()
        this.dirty = this.unkept = false
    }

    /** Store the label map as the image's final label. @returns what the server understood, null if it is not the time */
    async submit(client) {
        if (!this.ready) return null
        const box = this.map.filled()
        if (!sizeOf(box)) throw new Error('There is nothing to submit yet: click inside a structure first.')
        if (this.asking || this.history.stale.length) {
            const names = this.history.stale.join(', ')
            throw new Error(`What was given for ${names} has no answer yet. Wait for it, or press Answer, then submit what you see.`)
        }
        const clicks = Object.values(this.given).reduce((sum, given) => sum + prompts.count(given), 0)
        const labels = this.labels.map((label) => label.name)
        const voxels = this.map.cut(box)
        this.submitting = true
        try {
            const told = await api.submit(this.image, { labels, box, clicks, client }, await api.gzip(voxels))
            this.finish()
            this.stored = new LabelMap(this.about.shape)
            this.stored.write(box, voxels)
            return told
        } finally {
            this.submitting = false
            this.tell('change')
        }
    }
}
