// The mouse on the image. What it means is the annotator's choice of a tool; what follows is the session's.

import { boxAround } from './labelmap.js'
import { ACROSS } from './viewer.js'

export const TOOLS = ['click', 'box', 'scribble', 'move']
const STILL = 4 // pixels within which a press is a click

export class Tools {
    /**
     * @param target the element over the image
     * @param actions {click, stroke, box, editBox, moved, hover, windowed, layout, released}
     */
    constructor(target, viewer, overlay, actions) {
        Object.assign(this, { target, viewer, overlay, actions, tool: 'click', held: null, readOnly: false })
        target.addEventListener('pointerdown', (event) => this.down(event))
        target.addEventListener('pointermove', (event) => this.move(event))
        target.addEventListener('pointerup', (event) => this.up(event))
        target.addEventListener('pointercancel', () => this.cancel())
        target.addEventListener('pointerleave', () => this.actions.hover(null, null))
        target.addEventListener('wheel', (event) => this.wheel(event), { passive: false })
        target.addEventListener('contextmenu', (event) => event.preventDefault())
        target.addEventListener('dblclick', (event) => this.double(event))
    }

    place(event) {
        const corner = this.target.getBoundingClientRect()
        const [x, y] = [event.clientX - corner.left, event.clientY - corner.top]
        return { x, y, tile: this.viewer.opened ? this.viewer.tileAt(x, y) : undefined }
    }

    down(event) {
        const at = this.place(event)
        // A second finger does not take over what the first one draws.
        event.preventDefault()
        if (!at.tile || this.held) return
        this.target.focus({ preventScroll: true })
        this.target.setPointerCapture(event.pointerId)
        const flat = at.tile.plane in ACROSS
        this.held = { start: at, last: at, kind: this.meaning(event, at, flat), inside: !event.shiftKey }
        const { held } = this
        if (held.kind === 'window') held.window = this.viewer.window
        if (held.kind === 'handle') held.handle = this.overlay.handleAt(at.x, at.y, at.tile)
        if (held.kind === 'scribble') held.points = [this.viewer.voxelAt(at.x, at.y, at.tile, true)]
        if (held.kind === 'cross') this.follow(at)
    }

    meaning(event, { x, y, tile }, flat) {
        if (event.button === 1 || (event.button === 0 && event.altKey)) return flat ? 'pan' : 'turn'
        if (!flat) return 'turn'
        if (event.button === 2) return 'window'
        if (this.readOnly || this.tool === 'move') return 'cross'
        if (this.tool === 'box' && this.overlay.handleAt(x, y, tile)) return 'handle'
        return this.tool
    }

    move(event) {
        const at = this.place(event)
        const { held } = this
        if (!held) {
            this.hover(at)
            return
        }
        const [dx, dy] = [at.x - held.last.x, at.y - held.last.y]
        const { tile } = held.start
        if (held.kind === 'turn') this.viewer.turn(dx / 2, dy / 2)
        if (held.kind === 'pan') this.viewer.pan({ ...held.last, tile }, { ...at, tile })
        if (held.kind === 'cross') this.follow({ ...at, tile })
        if (held.kind === 'window') this.windowing(held, at)
        if (held.kind === 'box') this.rectangle(held, at)
        if (held.kind === 'handle') this.pull(held, at)
        if (held.kind === 'scribble') {
            held.points.push(...between(held.points.at(-1), this.viewer.voxelAt(at.x, at.y, tile, true)))
            this.dragged({ kind: 'scribble', plane: tile.plane, points: held.points, inside: held.inside })
        }
        held.last = at
    }

    up(event) {
        const { held } = this
        if (!held) return
        const at = this.place(event)
        this.held = null
        this.dragged(null)
        const { tile, x, y } = held.start
        const still = Math.hypot(at.x - x, at.y - y) <= STILL
        if (held.kind === 'window' && still && !this.readOnly && this.tool === 'click') this.click(held, false)
        if (held.kind === 'click' && still) this.click(held, held.inside)
        // Who drags with the tool for clicks wants to look around.
        if (held.kind === 'box' && held.edges && !still) this.actions.box(held.edges, ACROSS[tile.plane])
        if (held.kind === 'handle' && held.edges) this.actions.editBox(held.edges, true)
        if (held.kind === 'scribble') {
            const inside = this.viewer.voxelAt(x, y, tile)
            if (inside) this.actions.stroke(held.points, held.inside)
        }
    }

    click({ start }, inside) {
        const voxel = this.viewer.voxelAt(start.x, start.y, start.tile)
        if (voxel) this.actions.click(voxel, inside)
    }

    /** What was being drawn comes to nothing. */
    cancel() {
        if (!this.held) return
        this.held = null
        this.dragged(null)
        this.actions.released()
    }

    dragged(drag) {
        this.overlay.show.drag = drag
        this.overlay.draw()
    }

    hover({ x, y, tile }) {
        const flat = tile && tile.plane in ACROSS
        const handle = flat && !this.readOnly && this.tool === 'box' && this.overlay.handleAt(x, y, tile)
        this.target.style.cursor = handle ? 'nwse-resize' : !flat ? 'grab' : this.tool === 'move' ? 'move' : 'crosshair'
        this.actions.hover(tile ? tile.plane : null, flat ? this.viewer.voxelAt(x, y, tile) : null)
    }

    follow({ x, y, tile }) {
        const voxel = this.viewer.voxelAt(x, y, tile, true)
        this.viewer.crosshair = voxel
        this.actions.moved(voxel)
    }

    windowing(held, at) {
        const [low, high] = held.window
        const width = high - low
        const level = (low + high) / 2
        const step = Math.max(width, 1) / 250
        const wider = Math.max(1e-3, width + (at.x - held.start.x) * step)
        const middle = level + (at.y - held.start.y) * step
        this.actions.windowed([middle - wider / 2, middle + wider / 2])
    }

    rectangle(held, at) {
        const { tile } = held.start
        const [a, b] = [held.start, at].map(({ x, y }) => this.viewer.voxelAt(x, y, tile, true))
        held.edges = boxAround(a, b)
        this.dragged({ kind: 'box', plane: tile.plane, edges: held.edges })
    }

    pull(held, at) {
        const { tile } = held.start
        const box = this.overlay.show.prompts?.box
        if (!box) {
            // It was taken back meanwhile.
            this.cancel()
            return
        }
        const { edges } = box
        const parts = this.viewer.inTile(at.x, at.y, tile)
        const pulled = edges.slice()
        for (const side of held.handle.moves) {
            const axis = side >> 1
            const edge = Math.round(parts[axis] * this.viewer.shape[axis])
            const other = edges[side ^ 1]
            pulled[side] = side % 2 ? Math.max(edge, other + 1) : Math.min(edge, other - 1)
            pulled[side] = Math.min(this.viewer.shape[axis], Math.max(0, pulled[side]))
        }
        held.edges = pulled
        this.actions.editBox(pulled, false)
    }

    wheel(event) {
        const at = this.place(event)
        if (!at.tile) return
        event.preventDefault()
        const steps = Math.sign(event.deltaY)
        if (!(at.tile.plane in ACROSS) || event.ctrlKey || event.metaKey) {
            this.viewer.zoom(steps > 0 ? 1 / 1.15 : 1.15, at.tile.plane in ACROSS ? at : null)
        } else {
            this.actions.scroll(at.tile.plane, -steps * (event.shiftKey ? 5 : 1))
        }
    }

    double(event) {
        const { tile } = this.place(event)
        if (tile && tile.plane in ACROSS && this.tool === 'move') this.actions.layout(tile.plane)
    }
}

/** The voxels after `from` up to `to`, one step at a time. */
function between(from, to) {
    const steps = Math.max(...to.map((index, axis) => Math.abs(index - from[axis])))
    return Array.from({ length: steps }, (_, at) =>
        to.map((index, axis) => Math.round(from[axis] + ((index - from[axis]) * (at + 1)) / steps))
    )
}
