import js from '@eslint/js'

const browser = [
    ...['window', 'document', 'location', 'history', 'localStorage', 'sessionStorage', 'performance', 'fetch'],
    ...['Blob', 'FormData', 'Response', 'URL', 'URLSearchParams', 'AbortController', 'TextDecoder', 'CustomEvent', 'DOMException'],
    ...['CompressionStream', 'DecompressionStream', 'EventTarget', 'IntersectionObserver', 'ResizeObserver'],
    ...['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'requestAnimationFrame', 'queueMicrotask'],
    ...['matchMedia', 'atob', 'btoa']
]

export default [
    { ignores: ['**/niivue.js', '.venv/', 'node_modules/'] },
    js.configs.recommended,
    {
        languageOptions: { globals: Object.fromEntries(browser.map((name) => [name, 'readonly'])) },
        rules: {
            eqeqeq: 'error',
            'no-var': 'error',
            'prefer-const': 'error',
            'no-unused-vars': 'error',
            'no-implicit-globals': 'error',
            'max-lines': ['error', 500],
            'max-lines-per-function': ['error', 60],
            'max-params': ['error', 8],
            // No text of an image or label may become markup.
            'no-restricted-properties': ['error', { property: 'innerHTML' }, { property: 'outerHTML' }, { property: 'insertAdjacentHTML' }]
        }
    }
]
