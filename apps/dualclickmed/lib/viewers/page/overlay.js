// What lies over the image: crosshair, clicks, strokes, boxes with handles, the suggestion, the map of doubt.

import { ACROSS, EDGES, PLANES } from './viewer.js'
import { sizeOf } from './labelmap.js'
import { isClick } from './prompts.js'

const NEAR = 3 // slices around a click in which it is still shown, fainter
const HANDLE = 9
const INSIDE = '#46e08a'
const OUTSIDE = '#ff5d6c'

export class Overlay {
    /** @param canvas lies over the viewer's */
    constructor(canvas, viewer) {
        this.canvas = canvas
        this.viewer = viewer
        this.pen = canvas.getContext('2d')
        this.crosshair = true
        this.doubt = null
        this.show = { prompts: null, colour: '#fff', suggestion: null, guess: null, drag: null, hover: null, handles: false }
        this.doubtPlanes = new Map()
    }

    setDoubt(doubt) {
        this.doubt = doubt && sizeOf(doubt.box) ? doubt : null
        this.doubtPlanes.clear()
    }

    draw() {
        const { canvas, pen, viewer } = this
        const ratio = window.devicePixelRatio || 1
        const [width, height] = [canvas.clientWidth, canvas.clientHeight]
        if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
            canvas.width = Math.round(width * ratio)
            canvas.height = Math.round(height * ratio)
        }
        pen.setTransform(ratio, 0, 0, ratio, 0, 0)
        pen.clearRect(0, 0, width, height)
        if (!viewer.opened) return
        for (const tile of viewer.tiles) {
            pen.save()
            pen.beginPath()
            pen.rect(tile.left, tile.top, tile.width, tile.height)
            pen.clip()
            if (tile.plane in ACROSS) this.plane(tile)
            this.title(tile)
            pen.restore()
        }
    }

    plane(tile) {
        const place = this.viewer.projection(tile)
        const slice = this.viewer.crosshair[ACROSS[tile.plane]]
        if (this.doubt) this.uncertain(tile, place, slice)
        if (this.crosshair) this.cross(tile, place)
        const { prompts, suggestion, drag, guess } = this.show
        if (prompts) {
            if (prompts.box) this.box(tile, place, prompts.box)
            // The depth that the server took for a box that is flat as yet.
            if (prompts.box && guess) this.frame(this.rectangle(guess, place), [3, 5], 0.6)
            for (const mark of prompts.marks) {
                if (isClick(mark)) this.dot(tile, place, slice, mark.points[0], mark.inside)
                else this.stroke(tile, place, slice, mark)
            }
        }
        if (suggestion) this.hint(tile, place, slice, suggestion)
        if (drag && drag.plane === tile.plane) this.dragged(place, drag)
    }

    cross(tile, place) {
        const { pen, viewer } = this
        const [x, y] = place(viewer.crosshair.map((index) => index + 0.5))
        const [gap, edge] = [14, 26] // The letters at the edges stay free.
        pen.strokeStyle = 'rgba(120, 190, 255, 0.55)'
        pen.lineWidth = 1
        pen.beginPath()
        for (const [x0, y0, x1, y1] of [
            [tile.left + edge, y, x - gap, y],
            [x + gap, y, tile.left + tile.width - edge, y],
            [x, tile.top + edge, x, y - gap],
            [x, y + gap, x, tile.top + tile.height - edge]
        ]) {
            if (x1 < x0 || y1 < y0) continue
            pen.moveTo(Math.round(x0) + 0.5, Math.round(y0) + 0.5)
            pen.lineTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5)
        }
        pen.stroke()
    }

    dot(tile, place, slice, point, inside) {
        const away = Math.abs(point[ACROSS[tile.plane]] - slice)
        if (away > NEAR) return
        const { pen } = this
        const [x, y] = place(point.map((index) => index + 0.5))
        pen.globalAlpha = 1 - away / (NEAR + 1)
        pen.beginPath()
        pen.arc(x, y, 5.5, 0, 2 * Math.PI)
        pen.fillStyle = inside ? INSIDE : OUTSIDE
        pen.fill()
        pen.lineWidth = 1.5
        pen.strokeStyle = 'rgba(0, 0, 0, 0.85)'
        pen.stroke()
        // The sign tells them apart without colours.
        pen.beginPath()
        pen.moveTo(x - 2.8, y)
        pen.lineTo(x + 2.8, y)
        if (inside) {
            pen.moveTo(x, y - 2.8)
            pen.lineTo(x, y + 2.8)
        }
        pen.stroke()
        pen.globalAlpha = 1
    }

    stroke(tile, place, slice, { points, inside }) {
        const axis = ACROSS[tile.plane]
        const away = Math.min(...points.map((point) => Math.abs(point[axis] - slice)))
        if (away > NEAR) return
        const { pen } = this
        pen.globalAlpha = 0.85 * (1 - away / (NEAR + 1))
        this.line(points.map((point) => place(point.map((index) => index + 0.5))), inside ? INSIDE : OUTSIDE, 4)
        pen.globalAlpha = 1
    }

    line(places, colour, width) {
        const { pen } = this
        pen.beginPath()
        places.forEach(([x, y], at) => (at ? pen.lineTo(x, y) : pen.moveTo(x, y)))
        if (places.length === 1) pen.lineTo(places[0][0] + 0.1, places[0][1])
        pen.lineCap = 'round'
        pen.lineJoin = 'round'
        pen.lineWidth = width
        pen.strokeStyle = colour
        pen.stroke()
    }

    /** A box in a tile, as pixels: [left, top, width, height]. */
    rectangle([x0, x1, y0, y1, z0, z1], place) {
        const [a, b] = [place([x0, y0, z0]), place([x1, y1, z1])]
        return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.abs(b[0] - a[0]), Math.abs(b[1] - a[1])]
    }

    frame(rectangle, dashes, alpha) {
        const { pen } = this
        pen.globalAlpha = alpha
        pen.strokeStyle = this.show.colour
        pen.lineWidth = 1.75
        pen.setLineDash(dashes)
        pen.strokeRect(...rectangle)
        pen.setLineDash([])
        pen.globalAlpha = 1
    }

    box(tile, place, { edges, flat }) {
        const { pen } = this
        const axis = ACROSS[tile.plane]
        const slice = this.viewer.crosshair[axis]
        const crossed = slice >= edges[2 * axis] && slice < edges[2 * axis + 1]
        const dashes = flat !== null && flat !== axis ? [5, 4] : crossed ? [] : [3, 5]
        this.frame(this.rectangle(edges, place), dashes, crossed ? 1 : 0.35)
        if (crossed && this.show.handles) {
            for (const { x, y } of this.handles(tile, edges)) {
                pen.fillStyle = '#fff'
                pen.fillRect(x - 3.5, y - 3.5, 7, 7)
                pen.strokeStyle = '#000'
                pen.lineWidth = 1
                pen.strokeRect(x - 3.5, y - 3.5, 7, 7)
            }
        }
    }

    /** The places that move a box's sides: corners and middles. `moves` names the edges that follow. */
    handles(tile, edges) {
        const place = this.viewer.projection(tile)
        const [across, upward] = [0, 1, 2].filter((axis) => axis !== ACROSS[tile.plane])
        const middle = (axis) => (edges[2 * axis] + edges[2 * axis + 1]) / 2
        const found = []
        for (const a of [0, 1, null]) {
            for (const b of [0, 1, null]) {
                if (a === null && b === null) continue
                const edge = [0, 0, 0]
                edge[across] = a === null ? middle(across) : edges[2 * across + a]
                edge[upward] = b === null ? middle(upward) : edges[2 * upward + b]
                const [x, y] = place(edge)
                const moves = []
                if (a !== null) moves.push(2 * across + a)
                if (b !== null) moves.push(2 * upward + b)
                found.push({ x, y, moves })
            }
        }
        return found
    }

    handleAt(x, y, tile) {
        const { prompts } = this.show
        if (!prompts?.box) return null
        const axis = ACROSS[tile.plane]
        const slice = this.viewer.crosshair[axis]
        const { edges } = prompts.box
        if (slice < edges[2 * axis] || slice >= edges[2 * axis + 1]) return null
        const near = (handle) => Math.abs(handle.x - x) <= HANDLE && Math.abs(handle.y - y) <= HANDLE
        return this.handles(tile, edges).find(near) ?? null
    }

    dragged(place, drag) {
        const { pen } = this
        if (drag.kind === 'scribble') {
            const places = drag.points.map((point) => place(point.map((index) => index + 0.5)))
            this.line(places, drag.inside ? INSIDE : OUTSIDE, 4)
        } else if (drag.kind === 'box') {
            const rectangle = this.rectangle(drag.edges, place)
            pen.fillStyle = 'rgba(255, 255, 255, 0.08)'
            pen.fillRect(...rectangle)
            this.frame(rectangle, [], 1)
        }
    }

    hint(tile, place, slice, point) {
        const away = Math.abs(point[ACROSS[tile.plane]] - slice)
        const { pen } = this
        const [x, y] = place(point.map((index) => index + 0.5))
        pen.globalAlpha = away <= NEAR ? 1 : 0.3
        pen.strokeStyle = '#ffd84d'
        pen.lineWidth = 2
        pen.setLineDash([4, 3])
        pen.beginPath()
        pen.arc(x, y, 10, 0, 2 * Math.PI)
        pen.stroke()
        pen.setLineDash([])
        pen.globalAlpha = 1
    }

    uncertain(tile, place, slice) {
        const { box } = this.doubt
        const axis = ACROSS[tile.plane]
        if (slice < box[2 * axis] || slice >= box[2 * axis + 1]) return
        const picture = this.doubtPicture(axis, slice)
        const [across, upward] = [0, 1, 2].filter((other) => other !== axis)
        const corner = (side) => {
            const edge = [0, 0, 0]
            edge[across] = box[2 * across + side]
            edge[upward] = box[2 * upward + side]
            return place(edge)
        }
        const [[x0, y0], [x1, y1]] = [corner(0), corner(1)]
        const { pen } = this
        pen.save()
        pen.translate(x0, y0)
        pen.scale((x1 - x0) / picture.width, (y1 - y0) / picture.height)
        pen.imageSmoothingEnabled = true
        pen.drawImage(picture, 0, 0)
        pen.restore()
    }

    doubtPicture(axis, slice) {
        const key = `${axis}:${slice}`
        if (this.doubtPlanes.has(key)) return this.doubtPlanes.get(key)
        const { box, voxels } = this.doubt
        const sides = [0, 1, 2].map((side) => box[2 * side + 1] - box[2 * side])
        const [across, upward] = [0, 1, 2].filter((other) => other !== axis)
        const steps = [1, sides[0], sides[0] * sides[1]]
        const picture = document.createElement('canvas')
        picture.width = sides[across]
        picture.height = sides[upward]
        const pen = picture.getContext('2d')
        const pixels = pen.createImageData(picture.width, picture.height)
        const first = (slice - box[2 * axis]) * steps[axis]
        for (let v = 0, to = 0; v < picture.height; v++) {
            for (let u = 0; u < picture.width; u++, to += 4) {
                const percent = voxels[first + u * steps[across] + v * steps[upward]]
                // From violet through orange to yellow, as doubt grows.
                pixels.data[to] = Math.min(255, 90 + 2 * percent)
                pixels.data[to + 1] = Math.max(0, 2.4 * percent - 20)
                pixels.data[to + 2] = Math.max(40, 170 - 1.6 * percent)
                pixels.data[to + 3] = Math.max(0, Math.min(200, 3.2 * (percent - 15)))
            }
        }
        pen.putImageData(pixels, 0, 0)
        this.doubtPlanes.set(key, picture)
        if (this.doubtPlanes.size > 24) this.doubtPlanes.delete(this.doubtPlanes.keys().next().value)
        return picture
    }

    title(tile) {
        const { pen, viewer } = this
        const { left, top, width, height } = tile
        pen.font = '600 11px system-ui, sans-serif'
        pen.textBaseline = 'alphabetic'
        const text = (words, x, y, align, colour = 'rgba(226, 236, 246, 0.8)') => {
            pen.textAlign = align
            pen.lineWidth = 3
            pen.strokeStyle = 'rgba(0, 0, 0, 0.85)'
            pen.lineJoin = 'round'
            pen.strokeText(words, x, y)
            pen.fillStyle = colour
            pen.fillText(words, x, y)
        }
        text(PLANES[tile.plane], left + 10, top + 19, 'left')
        if (tile.plane in ACROSS) {
            const axis = ACROSS[tile.plane]
            const slice = viewer.crosshair[axis] + 1
            text(`${slice} / ${viewer.shape[axis]}`, left + width - 10, top + 19, 'right')
            const faint = 'rgba(185, 214, 240, 0.95)'
            const [west, east, north, south] = EDGES[tile.plane]
            // An I is no more than a stroke on bone.
            pen.font = '700 13px system-ui, sans-serif'
            text(west, left + 10, top + height / 2 + 4, 'left', faint)
            text(east, left + width - 10, top + height / 2 + 4, 'right', faint)
            text(north, left + width / 2, top + 19, 'center', faint)
            text(south, left + width / 2, top + height - 9, 'center', faint)
        }
        pen.strokeStyle = this.show.hover === tile.plane ? 'rgba(110, 175, 240, 0.6)' : 'rgba(140, 160, 180, 0.22)'
        pen.lineWidth = 1
        pen.strokeRect(left + 0.5, top + 0.5, width - 1, height - 1)
    }
}

