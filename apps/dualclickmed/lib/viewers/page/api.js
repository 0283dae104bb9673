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

/** Ask the server, and read what comes. A server that goes in the middle of its answer is no other case. */
async function ask(path, options, read) {
    const token = sessionStorage.getItem(TOKEN)
    const headers = { ...options?.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) }
    try {
        const response = await fetch(path, { ...options, headers })
        if (!response.ok) throw new ServerError(await sentence(response), response.status)
        return await read(response)
    } catch (error) {
        // What browsers say where there is no connection, or none any more.
        if (error instanceof TypeError) throw new ServerError('The server does not answer. Is it still running?', 0)
        throw error
    }
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
const json = (path, options) => ask(path, options, (response) => response.json())
const bytes = (path, options) => ask(path, options, (response) => response.arrayBuffer())

export const state = () => json('state')
export const images = () => json('images')
export const describe = (image, signal) => json(`image?${query({ image })}`, { signal })
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
    return URL.createObjectURL(await ask(`thumbnail?${query({ image })}`, {}, (response) => response.blob()))
}

/** An image's NIfTI bytes; `progress` is told the part that has come, from 0 to 1. */
export function volume(image, progress, signal) {
    return ask(`volume?${query({ image })}`, { signal }, async (response) => {
        const found = new Uint8Array(Number(response.headers.get('X-Image-Bytes')))
        const reader = response.body.getReader()
        let at = 0
        for (;;) {
            const { done, value } = await reader.read()
            if (done) break
            found.set(value, at)
            at += value.length
            progress(at / found.length)
        }
        if (at !== found.length) throw new ServerError('The image did not arrive whole. Open it again.', 0)
        return found.buffer
    })
}

export async function stored(image, version, signal) {
    return unpack(await bytes(`label?${query({ image, ...(version ? { version } : {}) })}`, { signal }))
}

/** Ask for an answer to all prompts; `held` are gzipped voxels or null. */
export async function segment(image, params, held, signal) {
    const form = new FormData()
    form.append('params', JSON.stringify(params))
    if (held) form.append('held', new Blob([held]), 'held.gz')
    return unpack(await bytes(`segment?${query({ image })}`, { method: 'POST', body: form, signal }))
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
