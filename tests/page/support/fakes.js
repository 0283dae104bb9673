// What the page's modules need of a browser and a server: storage with a bound, a viewer that only listens, and a
// server whose answers come when the test says so.

import { Buffer } from 'node:buffer'
import { gzipSync, gunzipSync } from 'node:zlib'

/** Values that a browser keeps, of so many characters in all. */
export class Storage {
    constructor(most = Infinity) {
        Object.defineProperty(this, 'most', { value: most, writable: true })
    }

    getItem(key) {
        return Object.hasOwn(this, key) ? this[key] : null
    }

    setItem(key, value) {
        const others = Object.keys(this).filter((one) => one !== key)
        const used = others.reduce((sum, one) => sum + one.length + this[one].length, 0)
        if (used + key.length + value.length > this.most) throw new DOMException('full', 'QuotaExceededError')
        this[key] = value
    }

    removeItem(key) {
        delete this[key]
    }
}

export class Viewer {
    constructor() {
        this.shown = []
        this.painted = 0
    }

    async read(bytes) {
        return bytes
    }

    show(picture, about) {
        this.shown.push(about.name)
    }

    paint() {
        this.painted++
    }

    colour() {}
}

/** A frame as the server sends it. */
export function frame(header, parts = {}) {
    const packed = Object.entries(parts).map(([name, { box, voxels }]) => ({ name, box, body: gzipSync(Uint8Array.from(voxels)) }))
    const told = packed.map(({ name, box, body }) => ({ name, box, bytes: body.length }))
    const text = Buffer.from(JSON.stringify({ ...header, parts: told }))
    const length = Buffer.alloc(4)
    length.writeUInt32LE(text.length)
    return Buffer.concat([length, text, ...packed.map(({ body }) => body)])
}

/**
 * Images of 8 x 1 x 1 voxels. A click inside a label is answered with its voxel and the next one; what was held
 * stays. With `slow` set, answers wait for `release`.
 */
export class Server {
    constructor(labels = {}) {
        Object.assign(this, { stored: labels, asked: [], submitted: [], waiting: [], slow: false, refusal: null })
        globalThis.fetch = (path, options = {}) => this.fetch(path, options)
        globalThis.sessionStorage = new Storage()
    }

    about(image) {
        return { name: image, shape: [8, 1, 1], spacing: [1, 1, 1], affine: [[1]], range: [0, image.length], window: [0, 1] }
    }

    async fetch(path, { signal, body }) {
        const [name, query] = path.split('?')
        const image = new URLSearchParams(query).get('image')
        const respond = await this.respond(name, image, body, signal)
        if (signal?.aborted) throw new DOMException('aborted', 'AbortError')
        return respond
    }

    async respond(name, image, body, signal) {
        if (name === 'segment') {
            const params = JSON.parse(body.get('params'))
            this.asked.push(params)
            if (this.slow) await new Promise((resolve) => this.wait(resolve, signal))
            if (this.refusal) return Response.json({ detail: 'Refused.' }, { status: this.refusal })
            const held = params.held ? gunzipSync(Buffer.from(await body.get('held').arrayBuffer())) : null
            return new Response(this.answer(params, held))
        }
        if (this.slow) await new Promise((resolve) => this.wait(resolve, signal))
        if (name === 'image') return Response.json(this.about(image))
        if (name === 'volume') return new Response(new Uint8Array(8), { headers: { 'X-Image-Bytes': '8' } })
        if (name === 'label' && body) {
            this.submitted.push(JSON.parse(body.get('params')))
            return Response.json({ labels: [] })
        }
        const { labels, voxels } = this.stored[image] ?? { labels: [], voxels: [] }
        const parts = voxels.length ? { labels: { box: [0, 8, 0, 1, 0, 1], voxels } } : {}
        return new Response(frame({ labels, notes: [] }, parts))
    }

    answer({ labels, prompts, held }, kept) {
        const voxels = new Uint8Array(8)
        if (held) voxels.set(kept, held[0])
        for (const [name, { clicks }] of Object.entries(prompts)) {
            const value = labels.indexOf(name) + 1
            for (const [x, , , inside] of clicks) {
                if (inside) for (const at of [x, x + 1]) if (!voxels[at]) voxels[at] = value
                if (!inside && voxels[x] === value) voxels[x] = 0
            }
        }
        return frame({ suggestions: { at: prompts }, boxes: {}, notes: [] }, { labels: { box: [0, 8, 0, 1, 0, 1], voxels } })
    }

    wait(resolve, signal) {
        this.waiting.push(resolve)
        signal?.addEventListener('abort', resolve)
    }

    release() {
        for (const resolve of this.waiting.splice(0)) resolve()
    }
}

/** Until a condition holds. */
export async function until(condition) {
    const end = Date.now() + 20_000
    while (!condition()) {
        if (Date.now() > end) throw new Error(`waited in vain for ${condition}`)
        await new Promise((resolve) => setTimeout(resolve, 2))
    }
}
