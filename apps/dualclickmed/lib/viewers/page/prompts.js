// What an annotator gave for each label: clicks and strokes in the order in which they came, and a box. Plain
// objects that can be stored and compared. A click is a stroke of one voxel.

/** Points of a stroke that are sent: an answer needs the course of a line, not each of its voxels. */
export const STROKE_POINTS = 16

export const none = () => ({ marks: [], box: null })

/** What was given for a label, whatever it is called. */
export const of = (given, name) => (Object.hasOwn(given, name) ? given[name] : none())

export const isEmpty = (given) => !given || !(given.marks.length || given.box)

export const count = (given) => (given ? given.marks.length : 0)

export const isClick = (mark) => mark.points.length === 1

const same = (a, b) => a[0] === b[0] && a[1] === b[1] && a[2] === b[2]

/** With one click more; a voxel that was clicked before changes sides, or stays. */
export function clicked(given, point, inside) {
    const others = given.marks.filter((mark) => !isClick(mark) || !same(mark.points[0], point))
    return { ...given, marks: [...others, { points: [point], inside }] }
}

/** With a stroke: voxels in the order in which the pointer went over them. */
export function scribbled(given, points, inside) {
    return { ...given, marks: [...given.marks, { points, inside }] }
}

/**
 * With a rectangle that was drawn in the plane across `axis`.
 *
 * A first one is flat: how deep it goes is the server's to guess. A second one in another plane adds the depth,
 * and both count along the side that they share. A further one starts anew.
 */
export function boxed(given, edges, axis) {
    const old = given.box
    if (!old || old.flat === null || old.flat === axis) return { ...given, box: { edges, flat: axis } }
    const joined = edges.slice()
    for (let side = 0; side < 3; side++) {
        const [low, high] = [2 * side, 2 * side + 1]
        if (side === axis) {
            joined[low] = old.edges[low]
            joined[high] = old.edges[high]
        } else if (side !== old.flat) {
            joined[low] = Math.min(edges[low], old.edges[low])
            joined[high] = Math.max(edges[high], old.edges[high])
        }
    }
    return { ...given, box: { edges: joined, flat: null } }
}

/** With its box as it is after a handle was pulled; it stays flat until it has a depth. */
export function edited(given, edges) {
    const flat = given.box?.flat ?? null
    const thin = flat !== null && edges[2 * flat + 1] - edges[2 * flat] === 1
    return { ...given, box: { edges, flat: thin ? flat : null } }
}

/** A stroke's voxels, evenly thinned; the ends stay. */
export function thinned(points, most = STROKE_POINTS) {
    const kept = points.filter((point, at) => !at || !same(point, points[at - 1]))
    if (kept.length <= most) return kept
    return Array.from({ length: most }, (_, at) => kept[Math.round((at * (kept.length - 1)) / (most - 1))])
}

/** A label's prompts as the server takes them: [x, y, z, inside] in order, each voxel by what was said last. */
export function toServer(given) {
    const clicks = new Map()
    for (const { points, inside } of given.marks) {
        for (const point of thinned(points)) {
            clicks.delete(point.join())
            clicks.set(point.join(), [...point, inside ? 1 : 0])
        }
    }
    const sent = { clicks: [...clicks.values()] }
    return given.box ? { ...sent, box: given.box.edges } : sent
}

/** Whether the server can answer: something is said to be inside. */
export const canAsk = (given, started) =>
    !isEmpty(given) && (started || given.box !== null || given.marks.some((mark) => mark.inside))
