// The panel of labels, answers and display.

import { $, el, icon, millilitres } from './dom.js'
import { count, isClick, isEmpty, of } from './prompts.js'

const SWITCHES = ['auto', 'lock', 'correct', 'doubt', 'outline', 'crosshair', 'hints']

export class Panel {
    /**
     * @param session
     * @param settings kept by `keep`
     * @param actions {look, windowed, hint, hintOf, problem}
     */
    constructor(session, settings, actions) {
        Object.assign(this, { session, settings, actions })
        for (const name of SWITCHES) {
            $(name).checked = settings[name]
            $(name).addEventListener('change', () => this.switched(name))
        }
        $('opacity').value = settings.opacity
        $('opacity').addEventListener('input', () => {
            settings.opacity = Number($('opacity').value)
            actions.look()
        })
        $('method').addEventListener('change', () => this.chosen('strategy', $('method').value))
        $('ct-window').addEventListener('change', () => this.chosen('ctWindow', $('ct-window').value))
        $('client').value = settings.client
        $('client').addEventListener('change', () => this.chosen('client', $('client').value, false))
        $('window').addEventListener('change', () => this.preset($('window').value))
        for (const name of ['level', 'width']) {
            $(name).addEventListener('change', () => {
                const [level, width] = [Number($('level').value), Math.max(1e-3, Number($('width').value))]
                actions.windowed([level - width / 2, level + width / 2])
            })
        }
        $('add').addEventListener('submit', (event) => {
            event.preventDefault()
            this.add()
        })
        $('ask').addEventListener('click', () => session.ask())
        $('clear').addEventListener('click', () => session.clear())
        $('suggest').addEventListener('click', () => actions.hint())
    }

    /** What the server offers. */
    offer(server) {
        this.server = server
        fill($('method'), server.strategies, this.settings.strategy ?? server.strategies[0])
        fill($('ct-window'), ['auto', ...Object.keys(server.windows), 'none'], this.settings.ctWindow)
        this.settings.strategy = $('method').value
        this.settings.ctWindow = $('ct-window').value
        $('names').replaceChildren(...server.labels.map((name) => el('option', { value: name })))
    }

    switched(name, value = $(name).checked) {
        $(name).checked = value
        this.settings[name] = value
        const { session } = this
        const otherwise = (name === 'correct' || (name === 'doubt' && value)) && !isEmpty(session.current)
        const waits = name === 'auto' && value && session.history.stale.length
        if (otherwise || waits) session.ask()
        this.actions.look()
    }

    chosen(name, value, ask = true) {
        this.settings[name] = value
        this.actions.look()
        if (ask && !isEmpty(this.session.current)) this.session.ask()
    }

    add() {
        const name = $('name').value.trim()
        if (!name) return
        if (name.includes(',') || name.toLowerCase() === 'background') {
            this.actions.problem(new Error("A label's name has no comma and is not 'background'."))
            return
        }
        // The server spells its own labels.
        const known = this.server.labels.find((one) => one.toLowerCase() === name.toLowerCase())
        try {
            if (!this.session.ready) return
            this.session.addLabel(known ?? name)
        } catch (error) {
            this.actions.problem(error)
            return
        }
        $('name').value = ''
        $('over').focus()
    }

    // Window -------------------------------------------------------------------------------------------------

    presets() {
        const { about } = this.session
        if (about.modality === 'ct') return this.server.windows
        const [low, high] = about.range
        return { usual: about.window, 'whole range': [low, high] }
    }

    preset(name) {
        if (name !== 'own') this.actions.windowed(this.presets()[name])
    }

    nextPreset() {
        const names = Object.keys(this.presets())
        this.preset(names[(names.indexOf($('window').value) + 1) % names.length])
    }

    showWindow([low, high]) {
        const presets = Object.entries(this.presets())
        const known = presets.find(([, [a, b]]) => Math.abs(a - low) < 0.5 && Math.abs(b - high) < 0.5)
        fill($('window'), [...presets.map(([name]) => name), 'own'], known ? known[0] : 'own')
        const digits = high - low < 10 ? 3 : 0
        $('level').value = ((low + high) / 2).toFixed(digits)
        $('width').value = (high - low).toFixed(digits)
    }

    // Drawing ------------------------------------------------------------------------------------------------

    draw() {
        const { session, settings } = this
        const [row, part] = this.focused()
        $('opacity-value').textContent = `${Math.round(100 * settings.opacity)} %`
        $('labels').replaceChildren(...session.labels.map((label, at) => this.row(label, at)))
        $('labels').querySelector('[aria-selected="true"]')?.scrollIntoView({ block: 'nearest' })
        if (row >= 0 && 'keyboard' in document.body.dataset) ($('labels').children[row]?.querySelector(part) ?? $('labels').children[row])?.focus()
        $('label-count').textContent = session.labels.length > 1 ? `${session.labels.length}` : ''
        this.given()
        const review = settings.review
        $('undo').disabled = review || !session.history.canUndo
        $('redo').disabled = review || !session.history.canRedo
        $('clear').disabled = isEmpty(session.current)
        $('ask').disabled = isEmpty(session.current)
        $('submit').disabled = review || !session.ready
        $('suggest').disabled = !this.actions.hintOf()
    }

    /** The row of a label that has the focus, or -1, and which part of it. */
    focused() {
        const row = document.activeElement?.closest('#labels li')
        const part = document.activeElement === row ? ':scope' : document.activeElement?.matches('input') ? 'input' : '.see'
        return [[...$('labels').children].indexOf(row), part]
    }

    given() {
        const { session } = this
        const { marks, box } = session.current
        const clicks = marks.filter(isClick)
        const inside = clicks.filter((mark) => mark.inside).length
        const parts = []
        const many = (number, one, more = `${one}s`) => number && parts.push(`${number} ${number === 1 ? one : more}`)
        many(inside, 'click inside', 'clicks inside')
        many(clicks.length - inside, 'click outside', 'clicks outside')
        many(marks.length - clicks.length, 'stroke')
        if (box) parts.push(box.flat === null ? 'a box' : 'a flat box: draw it in a second plane for its depth')
        const text = parts.length ? parts.join(', ') : 'Click inside it, Shift-click outside, or drag a box.'
        $('given').replaceChildren(el('b', { textContent: session.label?.name ?? '' }), `: ${text}`)
    }

    row(label, at) {
        const { session } = this
        const chosen = at === session.active
        const colour = el('input', {
            type: 'color',
            value: label.colour,
            title: 'Colour',
            'aria-label': `Colour of ${label.name}`,
            onchange: (event) => session.paintLabel(at, event.target.value),
            onclick: (event) => event.stopPropagation()
        })
        const see = el('button', {
            className: 'see',
            title: label.shown ? 'Hide' : 'Show',
            'aria-label': `${label.shown ? 'Hide' : 'Show'} ${label.name}`,
            onclick: (event) => {
                event.stopPropagation()
                session.toggle(at)
            }
        }, icon(label.shown ? 'eye' : 'hidden'))
        const clicks = count(of(session.given, label.name))
        return el('li', {
            role: 'option',
            'aria-selected': String(chosen),
            tabIndex: 0,
            title: at < 9 ? `Key ${at + 1}` : '',
            onclick: () => session.choose(at),
            onkeydown: (event) => {
                if (['Enter', ' '].includes(event.key) && event.target === event.currentTarget) session.choose(at)
            }
        },
        colour,
        el('span', { className: 'name', textContent: label.name, title: clicks ? `${label.name}, ${clicks} given` : label.name }),
        el('span', { className: 'ml', textContent: session.map ? millilitres(session.volumeOf(at)) : '' }),
        see)
    }
}

export function fill(select, names, chosen) {
    const options = names.map((name) => (typeof name === 'string' ? [name, name] : name))
    select.replaceChildren(...options.map(([value, text]) => el('option', { value, textContent: text })))
    if (options.some(([value]) => value === chosen)) select.value = chosen
}
