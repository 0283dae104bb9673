// What the browser keeps: the annotator's settings, and unfinished work until it is submitted.

const SETTINGS = 'dualclickmed-settings'
const WORK = 'dualclickmed-work-1:' // with the number of its form
const MOST = 2_500_000 // characters of one label map; a browser keeps about five million in all

export const settings = () => read(SETTINGS) ?? {}
export const keepSettings = (values) => write(SETTINGS, values)

/** Keep unfinished work; where the label map does not fit, the prompts alone, which give it again. */
export function keep(image, work, packed) {
    const text = packed.length * 1.34 < MOST ? toText(packed) : null
    const kept = { ...work, time: Date.now(), packed: text }
    if (!write(WORK + image, kept)) write(WORK + image, { ...kept, packed: null })
}

export function kept(image) {
    const found = read(WORK + image)
    if (!found || !Array.isArray(found.states) || !found.states.length) return null
    return { ...found, packed: typeof found.packed === 'string' ? toBytes(found.packed) : null }
}

export const forget = (image) => localStorage.removeItem(WORK + image)

/** The images that have unfinished work. */
export function unfinished() {
    return new Set(
        Object.keys(localStorage)
            .filter((key) => key.startsWith(WORK))
            .map((key) => key.slice(WORK.length))
    )
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

function toText(bytes) {
    let text = ''
    for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768))
    return btoa(text)
}

const toBytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
