// Small helpers for elements. Text is always set as text: no name of an image or label becomes markup.

export const $ = (id) => document.getElementById(id)

/** An element with properties (those with a dash are attributes), and its children. */
export function el(kind, properties = {}, ...children) {
    const element = document.createElement(kind)
    for (const [name, value] of Object.entries(properties)) {
        if (value === undefined || value === null) continue
        if (name.includes('-') || name === 'role') element.setAttribute(name, value)
        else element[name] = value
    }
    element.append(...children.filter((child) => child !== null && child !== undefined))
    return element
}

export function icon(name) {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
    const use = document.createElementNS('http://www.w3.org/2000/svg', 'use')
    use.setAttribute('href', `#i-${name}`)
    svg.append(use)
    return svg
}

/** A message that goes by itself, unless it is about something that went wrong. */
export function toast(text, { kind = '', action = null, seconds = kind === 'bad' ? 0 : 6 } = {}) {
    const box = el('div', { className: `toast ${kind}`, role: kind === 'bad' ? 'alert' : 'status' })
    const close = () => box.remove()
    box.append(el('p', { textContent: text }))
    if (action) {
        const press = () => {
            close()
            action.run()
        }
        box.append(el('button', { textContent: action.name, onclick: press }))
    }
    box.append(el('button', { textContent: '×', title: 'Close', 'aria-label': 'Close', onclick: close }))
    const toasts = $('toasts')
    for (const old of [...toasts.children]) if (old.firstChild.textContent === text) old.remove()
    while (toasts.children.length > 2) toasts.firstChild.remove()
    toasts.append(box)
    if (seconds) setTimeout(close, 1000 * seconds)
    return close
}

export const millilitres = (ml) => (ml === 0 ? '–' : `${ml < 10 ? ml.toFixed(2) : ml < 100 ? ml.toFixed(1) : Math.round(ml)} ml`)

export function ago(time) {
    const minutes = (Date.now() - new Date(time).getTime()) / 60000
    if (minutes < 1) return 'just now'
    if (minutes < 60) return `${Math.round(minutes)} min ago`
    if (minutes < 1440) return `${Math.round(minutes / 60)} h ago`
    return new Date(time).toLocaleDateString()
}
