// The administrator's side: what waits, how a training goes, what it gained, which weights are served.

import * as api from './api.js'
import { $, ago, el, toast } from './dom.js'

const EVERY = 2000 // milliseconds between looks while a training runs
const EXPERTS = { global: 'Global expert', local: 'Local expert' }

export class Learning {
    /** @param given {look, images, session, open, problem}: `look` asks the server anew */
    constructor(given) {
        Object.assign(this, given, { shown: false, acting: false, minutes: 8 })
    }

    toggle(shown = !this.shown) {
        this.shown = shown
        $('learning').hidden = !shown
        $('annotate').hidden = shown
        $('admin').setAttribute('aria-expanded', String(shown))
        clearTimeout(this.timer)
        if (shown) this.update()
    }

    async update() {
        clearTimeout(this.timer)
        const turn = (this.turn = Symbol('update'))
        let wait = 5 * EVERY
        try {
            const server = await this.look()
            if (running(server)) wait = EVERY
            else await this.images.load()
            if (turn !== this.turn) return
            this.draw(server)
        } catch (error) {
            // A server that is away is looked for by `look`.
            if (turn === this.turn && error.status !== 0) this.problem(error)
        }
        if (this.shown && turn === this.turn) this.timer = setTimeout(() => this.update(), wait)
    }

    draw(server) {
        const active = document.activeElement?.id
        $('learning').replaceChildren(
            el('div', { className: 'head' }, el('h2', { textContent: 'Learning' }), el('button', { textContent: 'Back', onclick: () => this.toggle(false) })),
            ...(server.review ? [el('p', { className: 'faint', textContent: 'This server is for review: nothing is trained or stored.' })] : []),
            ...Object.keys(EXPERTS).map((kind) => this.expert(kind, server)),
            ...this.trainings(server),
            ...this.versions(server)
        )
        if (active) $(active)?.focus()
    }

    expert(kind, server) {
        const { learning, served } = server
        const waiting = learning.waiting?.[kind] ?? []
        const progress = learning.progress ?? {}
        const mine = progress.kind === kind && !ENDED.includes(progress.state) ? progress : {}
        const trains = running(server) && mine.run !== undefined
        const weights = served[kind]
        const box = el('div', { className: 'expert', 'data-kind': kind })
        box.append(
            el('h3', {}, EXPERTS[kind], el('span', { className: 'faint', textContent: `${waiting.length} waiting` })),
            el('div', { className: 'faint', textContent: weights?.name ? `Served: ${weights.name}` : weights?.problem ?? '' })
        )
        if (trains) box.append(...progressOf(mine))
        if (!server.review && server.admin) box.append(this.buttons(kind, server, waiting, trains, weights))
        return box
    }

    buttons(kind, server, waiting, trains, weights) {
        const trainer = `dualclickmed_${kind}`
        const row = el('div', { className: 'row' })
        if (trains) {
            row.append(el('button', { textContent: 'Stop', id: `stop-${kind}`, onclick: () => this.act(api.stopTraining, 'The training is stopped; what was served is served still.') }))
        } else {
            row.append(el('button', {
                textContent: 'Train',
                id: `train-${kind}`,
                title: `${this.minutes} minutes, then the gate`,
                disabled: running(server) || !(server.learning.final > 0) || !(trainer in server.trainers),
                onclick: () => this.act(() => api.train(trainer, this.minutes), 'The training starts. Clicks are answered meanwhile.')
            }))
        }
        row.append(el('button', {
            textContent: 'Roll back',
            id: `back-${kind}`,
            disabled: !weights?.parent || trains,
            title: weights?.parent ? `to ${weights.parent}` : 'These weights were not trained here',
            onclick: () => this.act(() => api.rollBack(kind), `Served from ${weights.parent} again.`)
        }))
        return row
    }

    async act(work, done) {
        if (this.acting) return
        this.acting = true
        try {
            await work()
            toast(done, { kind: 'good' })
        } catch (error) {
            this.problem(error)
        }
        this.acting = false
        await this.update()
    }

    trainings({ learning }) {
        const trainings = learning.trainings ?? []
        if (!trainings.length) return []
        const rows = trainings.slice().reverse().map((training) => {
            const gain = gained(training)
            return el('tr', { title: training.reason ?? '' },
                el('td', { textContent: training.kind }),
                el('td', { textContent: training.state }),
                el('td', { className: `number ${gain > 0 ? 'gain' : gain < 0 ? 'loss' : ''}`, textContent: gain === null ? '' : `${gain > 0 ? '+' : ''}${gain.toFixed(3)}` }),
                el('td', { className: 'faint', textContent: ago(training.time) }))
        })
        return [el('h2', { textContent: 'Trainings' }), table(['Expert', 'State', 'Dice', 'When'], rows)]
    }

    versions({ learning }) {
        const rows = this.images.images.flatMap((image) => image.versions.slice().reverse().map((version) =>
            el('tr', {},
                el('td', {}, el('button', { textContent: image.title, title: 'Show this version', onclick: () => this.show(image, version) })),
                el('td', { textContent: version.by }),
                el('td', { className: 'faint', textContent: ago(version.time) }))))
        const by = Object.entries(learning.by ?? {}).map(([who, count]) => `${who} ${count}`).join(', ')
        return [
            el('h2', { textContent: 'Submitted' }),
            el('p', { className: 'note', textContent: `${many(learning.final, 'image')}, ${many(learning.submitted, 'version')}${by ? `; by ${by}` : ''}` }),
            ...(rows.length ? [table(['Image', 'By', 'When'], rows)] : [])
        ]
    }

    async show(image, version) {
        if (this.session.image !== image.id) await this.open(image.id)
        if (this.session.image !== image.id) return
        if (this.session.dirty) {
            toast('Submit your clicks first, or start anew.')
            return
        }
        try {
            if (!(await this.session.showVersion(version.version))) return
            toast(`The version of ${version.by}, ${ago(version.time)}.`, { action: { name: 'Back to the final one', run: () => this.open(image.id) } })
        } catch (error) {
            this.problem(error)
        }
    }
}

const ENDED = ['published', 'refused', 'failed']
const many = (number = 0, one) => `${number} ${number === 1 ? one : `${one}s`}`
const running = ({ training }) => training === true

function progressOf({ state, step, steps, elapsed, left }) {
    const text = [state, step === undefined ? '' : `step ${step} of ${steps}`, left > 0 ? `${Math.ceil(left / 60)} min left` : `${elapsed ?? 0} s`]
    const bar = el('progress', { max: 1, 'aria-label': 'Progress of the training' })
    if (steps) bar.value = step / steps
    return [el('div', { className: 'note training', textContent: text.filter(Boolean).join(', ') }), bar]
}

/** Mean Dice over the labels after a training less that before; null where it was not measured. */
function gained({ before, after }) {
    const mean = (report) => {
        const all = Object.values(report?.labels ?? {}).flat()
        return all.length ? all.reduce((sum, dice) => sum + dice, 0) / all.length : null
    }
    const [old, fresh] = [mean(before), mean(after)]
    return old === null || fresh === null ? null : fresh - old
}

function table(heads, rows) {
    const head = el('tr', {}, ...heads.map((name) => el('th', { textContent: name, scope: 'col' })))
    return el('table', {}, el('thead', {}, head), el('tbody', {}, ...rows))
}
