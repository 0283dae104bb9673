// Requests to the server. Whatever it refuses arrives as an Error with the server's own sentence.

const TOKEN = 'dualclickmed-token'

/** A refusal; `status` is 0 where the server could not be reached. */
export class ServerError extends Error {
    constructor(message, status) {
        super(message)
        this.status = status
    }
}

/** Remember the token of a log-in for as long as the tab is open. */
export function setToken(token) {
    if (token) sessionStorage.setItem(TOKEN, token)
    else sessionStorage.removeItem(TOKEN)
}

async function ask(path, options = {}) {
    const token = sessionStorage.getItem(TOKEN)
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) }
    let response
    try {
        response = await fetch(path, { ...options, headers })
    } catch (error) {
        if (error.name === 'AbortError') throw error
        throw new ServerError('The server does not answer. Is it still running?', 0)
    }
    if (!response.ok) throw new ServerError(await sentence(response), response.status)
    return response
}

async function sentence(response) {
    try {
        const { detail } = await response.json()
        if (typeof detail === 'string') return detail
        if (Array.isArray(detail)) return detail.map((found) => found.msg).join('; ')
    } catch {
        // Not every refusal is JSON.
    }
    return `The server answered with status ${response.status}.`
}

const query = (values) => new URLSearchParams(values).toString()
const json = async (path, options) => (await ask(path, options)).json()

export const state = () => json('state')
export const images = () => json('images')
export const describe = (image) => json(`image?${query({ image })}`)
export const next = (strategy) => json(`../activelearning/${encodeURIComponent(strategy)}`, { method: 'POST' })
export const rollBack = (kind) => json(`rollback?${query({ kind })}`, { method: 'POST' })
export const stopTraining = () => json('../train/', { method: 'DELETE' })

export function train(model, minutes) {
    return json(`../train/${encodeURIComponent(model)}?enqueue=true`, {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify({ minutes })
    })
}

/** The thumbnail's address as a blob, because an <img> could not send the log-in. */
export async function thumbnail(image) {
    const blob = await (await ask(`thumbnail?${query({ image })}`)).blob()
    return URL.createObjectURL(blob)
}

/** An image's NIfTI bytes; `progress` is told the part that has come, from 0 to 1. */
export async function volume(image, progress, signal) {
    const response = await ask(`volume?${query({ image })}`, { signal })
    const bytes = new Uint8Array(Number(response.headers.get('X-Image-Bytes')))
    const reader = response.body.getReader()
    let at = 0
    for (;;) {
        const { done, value } = await reader.read()
        if (done) break
        bytes.set(value, at)
        at += value.length
        progress(at / bytes.length)
    }
    if (at !== bytes.length) throw new ServerError('The image did not arrive whole. Open it again.', 0)
    return bytes.buffer
}

export async function stored(image, version) {
    return unpack(await (await ask(`label?${query({ image, ...(version ? { version } : {}) })}`)).arrayBuffer())
}

/** Ask for an answer to all prompts; `held` are gzipped voxels or null. */
export async function segment(image, params, held, signal) {
    const form = new FormData()
    form.append('params', JSON.stringify(params))
    if (held) form.append('held', new Blob([held]), 'held.gz')
    const response = await ask(`segment?${query({ image })}`, { method: 'POST', body: form, signal })
    return unpack(await response.arrayBuffer())
}

export async function submit(image, params, voxels) {
    const form = new FormData()
    form.append('params', JSON.stringify(params))
    form.append('voxels', new Blob([voxels]), 'label.gz')
    return json(`label?${query({ image })}`, { method: 'PUT', body: form })
}

export async function logIn(username, password) {
    const body = new URLSearchParams({ grant_type: 'password', username, password })
    const found = await json('../auth/token', { method: 'POST', body })
    setToken(found.access_token)
}

/** A frame's header, with its parts by name as {box, voxels}. See docs/page.md. */
async function unpack(buffer) {
    const length = new DataView(buffer).getUint32(0, true)
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)))
    const parts = {}
    let at = 4 + length
    for (const { name, box, bytes } of header.parts) {
        const packed = new Uint8Array(buffer, at, bytes)
        at += bytes
        parts[name] = { box, voxels: bytes ? await gunzip(packed) : new Uint8Array(0) }
    }
    return { ...header, parts }
}

export const gzip = (bytes) => through(bytes, new CompressionStream('gzip'))
export const gunzip = (bytes) => through(bytes, new DecompressionStream('gzip'))

async function through(bytes, transform) {
    const stream = new Blob([bytes]).stream().pipeThrough(transform)
    return new Uint8Array(await new Response(stream).arrayBuffer())
}
