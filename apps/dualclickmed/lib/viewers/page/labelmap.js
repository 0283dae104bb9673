// The label map on the image's grid, and changes to it that can be taken back. Voxels are (x, y, z), x fastest;
// boxes are half-open, [x0, x1, y0, y1, z0, z1].

export const EMPTY = Object.freeze([0, 0, 0, 0, 0, 0])

export const sizeOf = (box) => (box[1] - box[0]) * (box[3] - box[2]) * (box[5] - box[4])

/** The smallest box that holds both. */
export function union(a, b) {
    if (!sizeOf(a)) return b
    if (!sizeOf(b)) return a
    return a.map((edge, at) => (at % 2 ? Math.max(edge, b[at]) : Math.min(edge, b[at])))
}

/** The box of all voxels between two, both included. */
export const boxAround = (a, b) =>
    a.flatMap((index, axis) => [Math.min(index, b[axis]), Math.max(index, b[axis]) + 1])

export const holds = (box, x, y, z) =>
    x >= box[0] && x < box[1] && y >= box[2] && y < box[3] && z >= box[4] && z < box[5]

/** Runs of equal values as [length, value, length, value, ...]; masks shrink to a hundredth. */
export function encode(values) {
    const runs = []
    let start = 0
    for (let at = 1; at <= values.length; at++) {
        if (at === values.length || values[at] !== values[start]) {
            runs.push(at - start, values[start])
            start = at
        }
    }
    return Uint32Array.from(runs)
}

export function decode(runs, length) {
    const values = new Uint8Array(length)
    let at = 0
    for (let run = 0; run < runs.length; run += 2) {
        if (runs[run + 1]) values.fill(runs[run + 1], at, at + runs[run])
        at += runs[run]
    }
    return values
}

export class LabelMap {
    /** @param shape [nx, ny, nz] */
    constructor(shape) {
        this.shape = shape
        this.data = new Uint8Array(shape[0] * shape[1] * shape[2])
        this.counts = new Float64Array(256)
        this.extents = Array.from({ length: 256 }, () => EMPTY)
    }

    at([x, y, z]) {
        return this.data[x + this.shape[0] * (y + this.shape[1] * z)]
    }

    /** A box around every voxel that the labels have, or have had. */
    extent(values) {
        return [...values].reduce((box, value) => union(box, this.extents[value]), EMPTY)
    }

    filled() {
        return this.extents.slice(1).reduce(union, EMPTY)
    }

    /** A copy of the voxels in a box. */
    cut(box) {
        const found = new Uint8Array(sizeOf(box))
        let to = 0
        this.rows(box, (from, length) => {
            found.set(this.data.subarray(from, from + length), to)
            to += length
        })
        return found
    }

    /** Write voxels into a box. What changed is returned, for `apply`; null if nothing did. */
    write(box, voxels) {
        if (!sizeOf(box)) return null
        const before = this.cut(box)
        const change = { box, before: encode(before), after: encode(voxels) }
        if (before.every((value, at) => value === voxels[at])) return null
        this.paint(box, voxels, before)
        return change
    }

    /** Take a change back, or do it again. */
    apply(change, forward) {
        const voxels = decode(forward ? change.after : change.before, sizeOf(change.box))
        this.paint(change.box, voxels, this.cut(change.box))
    }

    paint(box, voxels, before) {
        const counts = this.counts
        for (let at = 0; at < voxels.length; at++) {
            if (voxels[at] !== before[at]) {
                counts[voxels[at]]++
                counts[before[at]]--
            }
        }
        let from = 0
        this.rows(box, (to, length) => {
            this.data.set(voxels.subarray(from, from + length), to)
            from += length
        })
        const present = new Uint8Array(256)
        for (let at = 0; at < voxels.length; at++) present[voxels[at]] = 1
        for (let value = 1; value < 256; value++) {
            if (present[value]) this.extents[value] = union(this.extents[value], box)
        }
    }

    rows(box, visit) {
        const [nx, ny] = this.shape
        for (let z = box[4]; z < box[5]; z++) {
            for (let y = box[2]; y < box[3]; y++) visit(box[0] + nx * (y + ny * z), box[1] - box[0])
        }
    }
}

/**
 * What stays while some labels are asked for anew: every voxel of the others, and of those labels what they
 * start from.
 * @param map the present label map
 * @param start the label map that labels start from, or null
 * @param active values of the labels that are asked for
 * @param begun values of those that start from what they have there
 * @returns {{box, voxels}} null if nothing stays
 */
export function heldBy(map, start, active, begun = active) {
    const box = start ? union(map.filled(), start.filled()) : map.filled()
    if (!sizeOf(box)) return null
    const voxels = map.cut(box)
    const first = start ? start.cut(box) : null
    let any = false
    for (let at = 0; at < voxels.length; at++) {
        if (active.has(voxels[at])) voxels[at] = 0
        if (first && !voxels[at] && begun.has(first[at])) voxels[at] = first[at]
        any = any || voxels[at] > 0
    }
    return any ? { box, voxels } : null
}

/** The label map's new voxels where an answer or the end of an old one changes them. */
export function merged(map, held, active, answer) {
    const box = union(union(map.extent(active), answer.box), held ? held.box : EMPTY)
    const voxels = new Uint8Array(sizeOf(box))
    copyInto(voxels, box, held)
    copyInto(voxels, box, answer)
    return { box, voxels }
}

function copyInto(target, box, part) {
    if (!part || !sizeOf(part.box)) return
    const width = box[1] - box[0]
    const height = box[3] - box[2]
    const length = part.box[1] - part.box[0]
    let from = 0
    for (let z = part.box[4]; z < part.box[5]; z++) {
        for (let y = part.box[2]; y < part.box[3]; y++) {
            const to = part.box[0] - box[0] + width * (y - box[2] + height * (z - box[4]))
            target.set(part.voxels.subarray(from, from + length), to)
            from += length
        }
    }
}
