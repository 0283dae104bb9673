// Every state of the prompts since the image was opened, and what each changed in the label map. Without end.

/**
 * `changes` lead from the former state's label map to this one's; they are not `known` of a state that was kept.
 * @param {object} prompts by label
 * @param {string?} label the one that was given something
 * @param {string[]} stale labels whose voxels do not show their prompts yet
 */
const state = (prompts, label, stale) => ({ prompts, label, stale, changes: [], known: true })

const without = (names, gone) => names.filter((name) => !gone.includes(name))
const moved = ({ label, changes }, known = true) => ({ label, boxes: changes.map(({ box }) => box), known })
const joined = (names, name) => [...without(names, [name]), name]

export class History {
    /** @param {object} prompts by label */
    constructor(prompts = {}) {
        this.states = [state(prompts, null, [])]
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

    /** The labels that the server has to be asked for, so that the label map shows all that was given. */
    get stale() {
        return this.now.stale
    }

    /** A new state, after something was given for `label`; what had been taken back is gone. */
    push(prompts, label) {
        const stale = joined(this.stale, label)
        this.states.length = this.at + 1
        this.states.push(state(prompts, label, stale))
        this.at++
    }

    /**
     * The answer to the present state has come. Going on from here takes it back first, so that later states stay
     * exactly what they were.
     * @param change in the label map, or null
     * @param {string[]} labels it is about
     */
    answer(change, labels) {
        this.settle(labels)
        if (!change) return
        this.now.changes.push(change)
        this.states[this.at + 1]?.changes.unshift({ ...change, before: change.after, after: change.before })
    }

    /** There will be no answer for these labels: the server has refused what was given. */
    settle(labels) {
        this.now.stale = without(this.now.stale, labels)
    }

    /**
     * Go back.
     * @param map gets what it was, where that is known; otherwise the label is stale
     * @returns {{label: string, boxes: number[][], known: boolean}} where the map changed, and whether it is known
     */
    undo(map) {
        const { now } = this
        const { known } = now
        // What its changes led from is not known; what is seen now is right for every label but its own.
        if (!known) now.changes = []
        for (const change of now.changes.toReversed()) map.apply(change, false)
        this.at--
        if (!now.known) this.now.stale = joined(now.stale, now.label)
        now.known = true
        return moved(now, known)
    }

    redo(map) {
        this.at++
        for (const change of this.now.changes) map.apply(change, true)
        return moved(this.now)
    }

    /** What can be kept: the prompts of the last states, without what they changed. */
    kept(most = 200) {
        const states = this.states.slice(0, this.at + 1).slice(-most)
        return states.map(({ prompts, label, stale }) => ({ prompts, label, stale }))
    }

    /**
     * As it was kept.
     * @param {string[]?} late labels of which the label map that was kept does not show the last answer; null if
     *     none was kept
     */
    static restored(states, late) {
        const found = new History()
        found.states = states.map(({ prompts, label }) => ({ ...state(prompts, label, []), known: false }))
        found.at = found.states.length - 1
        const last = states.at(-1)
        found.now.stale = late ? late.reduce(joined, last.stale) : Object.keys(last.prompts)
        return found
    }
}
