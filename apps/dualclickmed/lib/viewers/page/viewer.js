// The image on the screen: NiiVue with tiles that are filled whole, and the way between voxels and pixels.

import { Niivue, NVImage } from './niivue.js'

export const AXIAL = 0
export const CORONAL = 1
export const SAGITTAL = 2
const RENDER = 4

/** The axis (x, y, z) that a plane lies across. */
export const ACROSS = { [AXIAL]: 2, [CORONAL]: 1, [SAGITTAL]: 0 }
export const PLANES = { [AXIAL]: 'Axial', [CORONAL]: 'Coronal', [SAGITTAL]: 'Sagittal', [RENDER]: '3D' }
/** What the plane's edges show, by left, right, top, bottom. */
export const EDGES = { [AXIAL]: 'RLAP', [CORONAL]: 'RLSI', [SAGITTAL]: 'PASI' }

const MOST_ZOOM = 20
const GAP = 0.004
const BODY = 0.3 // opacity of the image in 3D
const DRAW_TEXTURE = 33991 // WebGL's TEXTURE7, where NiiVue keeps the drawing

/** NiiVue leaves the sides of a tile empty where the image is narrower; here the view goes on to its edges. */
class Tiles extends Niivue {
    /** In 3D the body is a mere shade around the labels, which are shown whole however they look in the planes. */
    drawImage3D(...given) {
        const { gl, renderShader, drawOpacity } = this
        renderShader.use(gl)
        gl.uniform1f(renderShader.uniforms.backOpacity, BODY)
        this.drawOpacity = 1
        super.drawImage3D(...given)
        this.drawOpacity = drawOpacity
    }

    calculateWidthHeight(type, scale, width, height) {
        this.tile = [width, height]
        return [width, height]
    }

    screenFieldOfViewExtendedVox(axis = 0) {
        const view = super.screenFieldOfViewExtendedVox(axis)
        if (!this.tile) return view
        const scale = [0, 1].map((side) => view.fovMM[side] / this.tile[side])
        for (const side of [0, 1]) {
            const middle = (view.mnMM[side] + view.mxMM[side]) / 2
            const length = this.tile[side] * Math.max(...scale) * 1.03
            view.fovMM[side] = length
            view.mnMM[side] = middle - length / 2
            view.mxMM[side] = middle + length / 2
        }
        return view
    }
}

export class Viewer {
    /** @param canvas NiiVue's; `drawn` is called after each drawing of the scene. */
    constructor(canvas, drawn) {
        this.canvas = canvas
        this.drawn = drawn
        this.main = AXIAL
        this.layout = 'one'
        this.waiting = false
        this.nv = new Tiles({
            interactive: false,
            logLevel: 'error',
            isRadiologicalConvention: true,
            crosshairWidth: 0,
            isOrientationTextVisible: false,
            backColor: [0, 0, 0, 1],
            loadingText: '',
            drawingEnabled: false,
            meshThicknessOn2D: 0
        })
    }

    async start() {
        await this.nv.attachToCanvas(this.canvas, false)
        // The first resize comes with the observer; afterwards the tiles lie elsewhere.
        new ResizeObserver(() => this.draw()).observe(this.canvas.parentElement)
    }

    /** Read a volume, for `show`. @param about what the server told of it */
    read(bytes, about) {
        const [low, high] = about.window
        return NVImage.loadFromUrl({ url: bytes, name: 'image.nii', colormap: 'gray', cal_min: low, cal_max: high })
    }

    /** Show a volume that was read. */
    show(image, about) {
        while (this.nv.volumes.length) this.nv.removeVolumeByIndex(0)
        this.about = about
        this.shape = about.shape
        this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1]
        this.nv.scene.crosshairPos = [0.5, 0.5, 0.5]
        this.nv.addVolume(image)
        this.nv.createEmptyDrawing()
        // The page keeps the voxels itself, and no states of them here.
        this.nv.drawClearAllUndoBitmaps()
        this.arrange()
    }

    get opened() {
        return this.nv.volumes.length > 0
    }

    // Labels -------------------------------------------------------------------------------------------------

    /** Show the label map's voxels; after a change in `box` only those go to the graphics card. */
    paint(map, box = null) {
        const { nv } = this
        const { gl } = nv
        nv.drawBitmap = map.data
        const [x0, x1, y0, y1, z0, z1] = box ?? [0, this.shape[0], 0, this.shape[1], 0, this.shape[2]]
        gl.activeTexture(DRAW_TEXTURE)
        gl.bindTexture(gl.TEXTURE_3D, nv.drawTexture)
        gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1)
        gl.pixelStorei(gl.UNPACK_ROW_LENGTH, this.shape[0])
        gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, this.shape[1])
        const first = x0 + this.shape[0] * (y0 + this.shape[1] * z0)
        gl.texSubImage3D(
            ...[gl.TEXTURE_3D, 0, x0, y0, z0, x1 - x0, y1 - y0, z1 - z0],
            ...[gl.RED, gl.UNSIGNED_BYTE, map.data, first]
        )
        gl.pixelStorei(gl.UNPACK_ROW_LENGTH, 0)
        gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, 0)
        this.draw()
    }

    /** @param colours by value, from 1: [red, green, blue, shown] */
    colour(colours) {
        const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [''] }
        colours.forEach(([red, green, blue, shown], at) => {
            table.R.push(red)
            table.G.push(green)
            table.B.push(blue)
            table.A.push(shown ? 255 : 0)
            table.I.push(at + 1)
            table.labels.push(String(at + 1))
        })
        this.nv.setDrawColormap(table)
        this.draw()
    }

    /** How the labels look: opacity from 0 to 1, and whether outlines alone are shown. */
    blend(opacity, outline) {
        this.nv.drawOpacity = outline ? 0.0001 : opacity
        this.nv.drawRimOpacity = outline ? 1 : Math.min(1, opacity + 0.35)
        this.draw()
    }

    // Window and view ------------------------------------------------------------------------------------------

    get window() {
        const image = this.nv.volumes[0]
        return [image.cal_min, image.cal_max]
    }

    set window([low, high]) {
        const image = this.nv.volumes[0]
        image.cal_min = low
        image.cal_max = Math.max(high, low + 1e-6)
        this.nv.updateGLVolume()
        this.draw()
    }

    /** One plane large and the others beside it, or all equal, or one plane alone. */
    arrange(layout = this.layout, main = this.main) {
        this.layout = layout
        this.main = main
        const others = [AXIAL, CORONAL, SAGITTAL].filter((plane) => plane !== main)
        const tile = (sliceType, left, top, width, height) => ({
            sliceType,
            position: [left + GAP, top + GAP, width - 2 * GAP, height - 2 * GAP]
        })
        let tiles
        if (layout === 'alone') tiles = [tile(main, 0, 0, 1, 1)]
        else if (layout === 'equal') {
            tiles = [
                tile(AXIAL, 0, 0, 0.5, 0.5),
                tile(CORONAL, 0.5, 0, 0.5, 0.5),
                tile(SAGITTAL, 0, 0.5, 0.5, 0.5),
                tile(RENDER, 0.5, 0.5, 0.5, 0.5)
            ]
        } else {
            tiles = [
                tile(main, 0, 0, 0.64, 1),
                tile(others[0], 0.64, 0, 0.36, 0.36),
                tile(others[1], 0.64, 0.36, 0.36, 0.36),
                tile(RENDER, 0.64, 0.72, 0.36, 0.28)
            ]
        }
        this.nv.customLayout = tiles
        this.draw()
    }

    zoom(factor, at = null) {
        const [x, y, z, old] = this.nv.scene.pan2Dxyzmm
        const zoom = Math.min(MOST_ZOOM, Math.max(0.5, old * factor))
        const centre = this.nv.frac2mm(at ? this.inTile(at.x, at.y, at.tile) : this.nv.scene.crosshairPos)
        const pan = [x, y, z].map((mm, axis) => mm - centre[axis] * (zoom - old))
        this.nv.scene.pan2Dxyzmm = [...pan, zoom]
        this.draw()
    }

    /** Shift the view so that what was at one place of the screen is at another. */
    pan(from, to) {
        const [start, end] = [from, to].map(({ x, y, tile }) => this.nv.frac2mm(this.inTile(x, y, tile)))
        const scene = this.nv.scene
        const zoom = scene.pan2Dxyzmm[3]
        const moved = [0, 1, 2].map((axis) => scene.pan2Dxyzmm[axis] + (end[axis] - start[axis]) * zoom)
        scene.pan2Dxyzmm = [...moved, zoom]
        this.draw()
    }

    resetView() {
        this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1]
        this.draw()
    }

    turn(dx, dy) {
        const { renderAzimuth, renderElevation } = this.nv.scene
        this.nv.setRenderAzimuthElevation(renderAzimuth - dx, renderElevation + dy)
        this.draw()
    }

    // Voxels and pixels ------------------------------------------------------------------------------------------

    get crosshair() {
        return this.nv.scene.crosshairPos.map
            ? [...this.nv.scene.crosshairPos].map((part, axis) => this.index(part, axis))
            : [0, 0, 0]
    }

    set crosshair(voxel) {
        this.nv.scene.crosshairPos = voxel.map((index, axis) => this.part(this.bounded(index, axis), axis))
        this.draw()
    }

    bounded(index, axis) {
        return Math.min(this.shape[axis] - 1, Math.max(0, index))
    }

    part(index, axis) {
        return (index + 0.5) / this.shape[axis]
    }

    index(part, axis) {
        return this.bounded(Math.floor(part * this.shape[axis]), axis)
    }

    /** The tiles as they were drawn last: {plane, left, top, width, height} in pixels of the page. */
    get tiles() {
        const ratio = this.nv.uiData.dpr || 1
        return this.nv.screenSlices.map((slice, at) => {
            const [left, top, width, height] = slice.leftTopWidthHeight.map((edge) => edge / ratio)
            const plane = slice.sliceFrac === Infinity || slice.axCorSag > SAGITTAL ? RENDER : slice.axCorSag
            return { at, plane, left, top, width: Math.abs(width), height: Math.abs(height) }
        })
    }

    tileAt(x, y) {
        return this.tiles.find(
            (tile) => x >= tile.left && x < tile.left + tile.width && y >= tile.top && y < tile.top + tile.height
        )
    }

    inTile(x, y, tile) {
        const ratio = this.nv.uiData.dpr || 1
        return [...this.nv.screenXY2TextureFrac(x * ratio, y * ratio, tile.at, false)]
    }

    /** The voxel under a place of a tile, cut to the image if wanted; null outside of it. */
    voxelAt(x, y, tile, bounded = false) {
        const parts = this.inTile(x, y, tile)
        const across = ACROSS[tile.plane]
        parts[across] = this.nv.scene.crosshairPos[across]
        if (!bounded && parts.some((part) => part < 0 || part >= 1)) return null
        return parts.map((part, axis) => this.index(part, axis))
    }

    /** From voxel edges (x, y, z) to pixels of a tile, as a function. The map is linear: three places tell it. */
    projection(tile) {
        const inset = 0.25
        const [x0, x1] = [tile.left + tile.width * inset, tile.left + tile.width * (1 - inset)]
        const [y0, y1] = [tile.top + tile.height * inset, tile.top + tile.height * (1 - inset)]
        const origin = this.inTile(x0, y0, tile)
        const right = this.inTile(x1, y0, tile)
        const down = this.inTile(x0, y1, tile)
        const [across, upward] = [0, 1, 2].filter((axis) => axis !== ACROSS[tile.plane])
        const perX = (right[across] - origin[across]) / (x1 - x0)
        const perY = (down[upward] - origin[upward]) / (y1 - y0)
        return (edge) => [
            x0 + (edge[across] / this.shape[across] - origin[across]) / perX,
            y0 + (edge[upward] / this.shape[upward] - origin[upward]) / perY
        ]
    }

    /** The value of a voxel in the image's own units. */
    value([x, y, z]) {
        const image = this.nv.volumes[0]
        const stored = image.img[x + this.shape[0] * (y + this.shape[1] * z)]
        return stored * image.hdr.scl_slope + image.hdr.scl_inter
    }

    /** Draw at the next frame, however often it is asked for. */
    draw() {
        if (this.waiting) return
        this.waiting = true
        requestAnimationFrame(() => {
            this.waiting = false
            this.nv.drawScene()
            this.drawn()
        })
    }
}
