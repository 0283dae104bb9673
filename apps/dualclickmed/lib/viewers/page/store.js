// What the browser keeps: the annotator's settings, and unfinished work until it is submitted. What was given is
// kept at once, so that nothing is lost however the page ends; the label map, which may be large, now and then.

const SETTINGS = 'dualclickmed-settings'
const WORK = 'dualclickmed-work-2:' // with the number of its form
const MAP = 'dualclickmed-map-2:'
const MOST = 2_500_000 // characters of one label map; a browser keeps about five million in all
const FEWER = [200, 20, 1] // states that are kept, where there is no room for more

export const settings = () => read(SETTINGS) ?? {}
export const keepSettings = (values) => write(SETTINGS, values)

/**
 * Keep what was given for an image.
 * @param {object} work `states` as of `History.kept`, and whatever else can be JSON
 * @returns {boolean} false if there was no room, not even without label maps; then what was kept before is gone
 */
export function keep(image, work) {
    const room = [() => {}, () => dropMaps(image), () => remove(MAP + image)]
    for (const most of FEWER) {
        const kept = { ...work, ...compact(work.states.slice(-most)), time: Date.now() }
        for (const make of room) {
            make()
            if (write(WORK + image, kept)) return true
        }
    }
    remove(WORK + image)
    return false
}

/** Keep an image's label map in its box; without it what was given gives it again. */
export function keepMap(image, box, packed) {
    const fits = packed.length * 1.34 < MOST && write(MAP + image, { box, packed: toText(packed) })
    if (!fits) remove(MAP + image)
    return fits
}

/** What was kept of an image, with `map` as {box, packed} or null. */
export function kept(image) {
    const work = read(WORK + image)
    if (!Array.isArray(work?.states) || !work.states.length) return null
    try {
        const map = read(MAP + image)
        return { ...work, states: expanded(work), map: map && { box: map.box, packed: toBytes(map.packed) } }
    } catch {
        return null // Not of this page's making.
    }
}

export function forget(image) {
    remove(WORK + image)
    remove(MAP + image)
}

/** The images that have unfinished work. */
export const unfinished = () => new Set(keys(WORK).map((key) => key.slice(WORK.length)))

/** States share nearly all of their marks: each is written once, and states name it by its number. */
function compact(states) {
    const numbers = new Map()
    const number = (mark) => {
        if (!numbers.has(mark)) numbers.set(mark, numbers.size)
        return numbers.get(mark)
    }
    const short = ({ prompts, ...rest }) => ({
        ...rest,
        prompts: Object.entries(prompts).map(([name, { marks, box }]) => [name, marks.map(number), box])
    })
    return { states: states.map(short), marks: [...numbers.keys()] }
}

function expanded({ states, marks }) {
    const whole = ([name, numbers, box]) => [name, { marks: numbers.map((at) => marks[at]), box }]
    return states.map(({ prompts, ...rest }) => ({ ...rest, prompts: Object.fromEntries(prompts.map(whole)) }))
}

/** Label maps of other images can be made again from what was given. */
const dropMaps = (but) => keys(MAP).forEach((key) => key !== MAP + but && remove(key))

function keys(start) {
    try {
        return Object.keys(localStorage).filter((key) => key.startsWith(start))
    } catch {
        return [] // A browser may keep nothing at all.
    }
}

function read(key) {
    try {
        return JSON.parse(localStorage.getItem(key))
    } catch {
        return null
    }
}

function write(key, value) {
    try {
        localStorage.setItem(key, JSON.stringify(value))
        return true
    } catch {
        return false
    }
}

function remove(key) {
    try {
        localStorage.removeItem(key)
    } catch {
        // Nothing was kept.
    }
}

function toText(bytes) {
    let text = ''
    for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768))
    return btoa(text)
}

const toBytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
