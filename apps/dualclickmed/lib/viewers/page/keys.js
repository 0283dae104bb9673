// The keyboard: one table that acts, and from which the help sheet is made.

import { $, el } from './dom.js'

const MOUSE = [
    ['Click', 'inside'],
    ['Shift-click, right click', 'outside'],
    ['Drag (box)', 'a box; again in another plane for its depth'],
    ['Drag a handle', 'correct the box'],
    ['Drag (scribble)', 'a stroke inside, with Shift outside'],
    ['Wheel', 'slices (Shift: five at once)'],
    ['Ctrl-wheel', 'zoom'],
    ['Right drag', 'window: width and level'],
    ['Alt-drag, middle drag', 'shift the image'],
    ['Drag in 3D', 'turn']
]

/**
 * @param {[string, string, string, () => void][]} bindings section, keys (several by a space), meaning, action
 */
export class Keys {
    constructor(bindings) {
        this.actions = new Map()
        for (const [, keys, , action] of bindings) for (const key of keys.split(' ')) this.actions.set(key, action)
        document.addEventListener('keydown', (event) => this.pressed(event))
        // The image shows that it has the focus only to those who go by Tab.
        document.addEventListener('keydown', ({ key }) => key === 'Tab' && (document.body.dataset.keyboard = ''))
        document.addEventListener('pointerdown', () => delete document.body.dataset.keyboard)
        this.sheet(bindings)
    }

    pressed(event) {
        if (document.querySelector('dialog[open]') || event.isComposing) return
        const { target } = event
        const typing = target.matches('input:not([type="checkbox"], [type="range"], [type="color"]), select, textarea')
        if (typing) {
            if (event.key === 'Escape') target.blur()
            return
        }
        // A focused button or row answers these itself; one of a sheet that was closed keeps the focus until the next frame.
        const answers = target.matches('button, summary, li, input') && target.checkVisibility()
        if (answers && ['Enter', ' '].includes(event.key)) return
        const key = name(event)
        const action = this.actions.get(key)
        // A key that is held down goes on moving, but gives one click.
        if (!action || (event.repeat && !GOES_ON.test(key))) return
        if (target.matches('input[type="range"]') && event.key.startsWith('Arrow')) return
        event.preventDefault()
        action(event)
    }

    sheet(bindings) {
        const sections = new Map([['Mouse', MOUSE]])
        for (const [section, keys, meaning] of bindings) {
            if (!sections.has(section)) sections.set(section, [])
            sections.get(section).push([keys, meaning])
        }
        const rows = (entries, keyed) => entries.map(([keys, meaning]) => {
            const shown = keyed ? keys.split(' ').map(readable).flatMap((key) => [el('kbd', { textContent: key }), ' ']) : [keys]
            return el('div', {}, el('span', {}, ...shown), el('span', { className: 'faint', textContent: meaning }))
        })
        $('keys').replaceChildren(...[...sections].map(([title, entries]) =>
            el('section', {}, el('h2', { textContent: title }), ...rows(entries, title !== 'Mouse'))))
    }
}

const GOES_ON = /Arrow|Page|^[.,+=[\]-]$|z$|^u$|y$/

/** As the table writes it: Ctrl+Shift+z, ArrowUp, ?. */
function name(event) {
    const key = event.key === ' ' ? 'Space' : event.key.length === 1 ? event.key.toLowerCase() : event.key
    // Some keyboards write signs such as [ with AltGr, which is told as Ctrl and Alt.
    const sign = event.altKey && key.length === 1 && !/[a-z0-9]/.test(key)
    if (event.altKey && !sign) return ''
    const control = (event.ctrlKey || event.metaKey) && !sign ? 'Ctrl+' : ''
    // The sign is what counts where Shift makes another one of it.
    const shift = event.shiftKey && (event.key.length > 1 || event.key === ' ' || /[a-z]/i.test(event.key)) ? 'Shift+' : ''
    return control + shift + key
}

const SIGNS = { ArrowUp: '↑', ArrowDown: '↓', ArrowLeft: '←', ArrowRight: '→', PageUp: 'PgUp', PageDown: 'PgDn', Escape: 'Esc', Delete: 'Del' }
const readable = (key) => key.split('+').map((part) => SIGNS[part] ?? (part.length === 1 ? part.toUpperCase() : part)).join('+')
