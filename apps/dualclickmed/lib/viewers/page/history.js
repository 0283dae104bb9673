// Every state of the prompts since the image was opened, and what each changed in the label map. Without end.

const state = (prompts, label) => ({ prompts, label, change: null, known: false, answered: false })

export class History {
    /** @param {object} prompts by label */
    constructor(prompts = {}) {
        this.states = [{ ...state(prompts, null), known: true, answered: true }]
        this.at = 0
    }

    get now() {
        return this.states[this.at]
    }

    get canUndo() {
        return this.at > 0
    }

    get canRedo() {
        return this.at < this.states.length - 1
    }

    /** A new state, after something was given for `label`; what had been taken back is gone. */
    push(prompts, label) {
        this.states.length = this.at + 1
        this.states.push(state(prompts, label))
        this.at++
    }

    /** The answer to the present state has come; what later states changed was counted from another map. */
    answer(change) {
        Object.assign(this.now, { change, known: true, answered: true })
        for (const later of this.states.slice(this.at + 1)) {
            Object.assign(later, { change: null, known: false, answered: false })
        }
    }

    /**
     * Go back.
     * @param map gets what it was
     * @returns {{label, change, ask}} `ask` where the server has to be asked for the label's former answer
     */
    undo(map) {
        const undone = this.now
        if (undone.change) map.apply(undone.change, false)
        this.at--
        const restored = undone.answered && !undone.known
        return { label: undone.label, change: undone.change, ask: restored || !this.now.answered }
    }

    redo(map) {
        this.at++
        const { label, change, answered } = this.now
        if (change) map.apply(change, true)
        return { label, change, ask: !answered }
    }

    /** What can be kept: the prompts of the last states, without what they changed. */
    kept(most = 200) {
        return this.states.slice(0, this.at + 1).slice(-most).map(({ prompts, label }) => ({ prompts, label }))
    }

    /** As it was kept, together with the label map of the last state. */
    static restored(states) {
        const found = new History()
        found.states = states.map(({ prompts, label }) => state(prompts, label))
        found.at = found.states.length - 1
        found.now.answered = true
        return found
    }
}
