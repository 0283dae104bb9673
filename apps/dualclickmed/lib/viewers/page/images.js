// The list of images, with thumbnails, and which are done.

import * as api from './api.js'
import { unfinished } from './store.js'
import { $, ago, el } from './dom.js'

const MOST_ROWS = 500

export class Images {
    /** @param {(id: string) => void} choose */
    constructor(choose) {
        this.choose = choose
        this.images = []
        this.current = null
        this.pictures = new Map()
        $('filter').addEventListener('input', () => this.draw())
        // Pictures are made by the server one at a time: only those that are looked at are asked for.
        this.seen = new IntersectionObserver((entries) => {
            for (const { isIntersecting, target } of entries) if (isIntersecting) this.picture(target)
        }, { root: $('list') })
    }

    /** Show anew what is done and what has unfinished work, if that is otherwise than it was shown. */
    refresh() {
        if (this.shown !== [...unfinished()].sort().join('\n')) this.draw()
    }

    async load() {
        this.images = await api.images()
        this.draw()
    }

    find(id) {
        return this.images.find((image) => image.id === id)
    }

    mark(id) {
        this.current = id
        this.draw()
    }

    draw() {
        const wanted = $('filter').value.trim().toLowerCase()
        const open = unfinished()
        this.shown = [...open].sort().join('\n')
        this.seen.disconnect()
        const byKeys = 'keyboard' in document.body.dataset && $('list').contains(document.activeElement)
        const focused = byKeys && document.activeElement.dataset.id
        const shown = this.images.filter(({ id, title }) => `${id} ${title}`.toLowerCase().includes(wanted))
        const rows = shown.slice(0, MOST_ROWS).map((image) => el('li', {}, this.row(image, open.has(image.id))))
        if (shown.length > MOST_ROWS) rows.push(el('li', { className: 'note', textContent: `and ${shown.length - MOST_ROWS} more: type a part of the name above` }))
        if (!shown.length) rows.push(el('li', { className: 'note', textContent: wanted ? 'No image has this in its name.' : 'There is no image yet.' }))
        $('list').replaceChildren(...rows)
        if (focused) [...$('list').querySelectorAll('button')].find(({ dataset }) => dataset.id === focused)?.focus()
        const done = this.images.filter((image) => image.done).length
        $('done').textContent = this.images.length ? `${done} of ${this.images.length} done` : ''
    }

    row(image, open) {
        const thumb = el('span', { className: 'thumb', 'data-image': image.id, textContent: image.modality || '' })
        const known = this.pictures.get(image.id)
        if (known === undefined) this.seen.observe(thumb)
        else picture(thumb, known)
        const mark = open
            ? el('span', { className: 'mark open', textContent: 'Not submitted' })
            : image.done
              ? el('span', { className: 'mark done', textContent: image.time ? `Done, ${ago(image.time)}` : 'Done', title: image.by ? `by ${image.by}` : '' })
              : el('span', { className: 'mark', textContent: 'To do' })
        const text = el('span', { className: 'text' }, el('span', { textContent: image.title, title: image.id }), mark)
        const button = el('button', { 'data-id': image.id, onclick: () => this.choose(image.id) }, thumb, text)
        if (image.id === this.current) button.setAttribute('aria-current', 'true')
        return button
    }

    async picture(thumb) {
        const id = thumb.dataset.image
        this.seen.unobserve(thumb)
        if (this.pictures.has(id)) return
        this.pictures.set(id, null)
        this.pictures.set(id, await api.thumbnail(id).catch(() => ''))
        for (const place of document.querySelectorAll('.thumb')) {
            if (place.dataset.image === id) picture(place, this.pictures.get(id))
        }
    }
}

/** Show an image's picture; where there is none (''), the image's kind. */
function picture(thumb, source) {
    if (source) thumb.replaceChildren(el('img', { src: source, alt: '' }))
    else if (source === '' && !thumb.textContent) thumb.textContent = '?'
}
