/**
 * What is said between a deblurd daemon and its clients: requests, frames, and the shared memory that they lie in.
 *
 * Knows the wire format (docs/2-wire-format.md) and decodes no JPEG; opens no socket.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
import { closeSync, constants, fstatSync, openSync, readFileSync, readSync } from 'node:fs'
import { join } from 'node:path'

export const WIRE_VERSION = 1

/** A message is not of the wire format. The next `receive` goes on after it. */
export class WireError extends Error {
  name = 'WireError'
}

/** A message is of a newer version of it: update this client. */
export class VersionError extends WireError {
  name = 'VersionError'
}

/** One frame. Rows from top to bottom, without padding. */
export class Frame {
  /** All that is known of it, by the names of the wire format. `pts` and what ends in `_ns` are BigInts. */
  header
  /** A Buffer: width * height pixels of 3 bytes, or 1 for gray8; with the encoding `jpeg`, a JPEG file. */
  pixels

  constructor(header, pixels) {
    this.header = header
    this.pixels = pixels
  }

  get stream() { return this.header.stream }
  get seq() { return this.header.seq }
  get width() { return this.header.width }
  get height() { return this.header.height }
  /** rgb24, bgr24 or gray8; of a JPEG file, what it must be decoded to. */
  get pixelFormat() { return this.header.pixel_format }
  /** How it came: raw, shared or jpeg. */
  get encoding() { return this.header.encoding }

  /** Milliseconds since it arrived at the daemon; from another host, as good as the two wall clocks agree. */
  get ageMs() {
    const { boot_id, arrived_ns, published_ns, published_unix_ns } = this.header
    if (boot_id === BOOT_ID) return Number(process.hrtime.bigint() - arrived_ns) / 1e6
    return Number(published_ns - arrived_ns - published_unix_ns) / 1e6 + Date.now()
  }
}

const BOOT_ID = (() => {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
  } catch {
    return undefined // not Linux: the wall clocks must do
  }
})()

/** Take a message apart. `payload` is a view of it. */
export function unpack(message) {
  const end = message.subarray(0, 256).indexOf(0)
  if (end < 1 || message.length < end + 5) {
    throw new WireError('a message must begin with a topic, a NUL and the length of its header')
  }
  const length = message.readUInt32LE(end + 1)
  const after = end + 5 + length
  if (length > 65536 || after > message.length) {
    throw new WireError(`a header must be at most 65536 bytes and within its message, got ${length}`)
  }
  const header = parse(message.toString('utf8', end + 5, after))
  if (!Number.isInteger(header?.version)) throw new WireError('a header must be a JSON object with a version')
  if (header.version > WIRE_VERSION) {
    const versions = `${header.version}, this client ${WIRE_VERSION}`
    throw new VersionError(`the daemon speaks wire format ${versions}: update the client`)
  }
  return { header, payload: message.subarray(Math.ceil(after / 64) * 64) }
}

/** JSON with BigInts in the fields that need 64 bits: a Number of JavaScript holds 53. */
function parse(text) {
  const wide = /("pts"|"\w+_ns")(\s*:\s*)(-?\d+)(?=\s*[,}])|"(?:[^"\\]|\\.)*"/g // strings, to pass over what is in them
  try {
    const quoted = text.replace(wide, (whole, name, colon, digits) => (digits ? `${name}${colon}"${digits}"` : whole))
    return JSON.parse(quoted, (name, value) =>
      typeof value === 'string' && (name === 'pts' || name.endsWith('_ns')) ? BigInt(value) : value)
  } catch (error) {
    throw new WireError(`a header must be a JSON object in UTF-8 (${error.message})`)
  }
}

/** The frame of a message, or null for what this client does not know: the format may grow. */
export function toFrame(header, payload) {
  const { width, height, encoding, pixel_format: pixelFormat } = header
  const size = [width, height].every((side) => Number.isInteger(side) && side >= 1 && side <= 65536)
  if (!size) throw new WireError(`'width' and 'height' must be 1 to 65536, got ${width} and ${height}`)
  const depth = { rgb24: 3, bgr24: 3, gray8: 1 }[pixelFormat]
  if (!depth || !['raw', 'jpeg', 'shared'].includes(encoding)) return null
  const { stream, seq, arrived_ns, published_ns, published_unix_ns } = header
  const times = [arrived_ns, published_ns, published_unix_ns].every((time) => typeof time === 'bigint')
  if (typeof stream !== 'string' || !Number.isInteger(seq) || !times) {
    throw new WireError('a frame must have a stream, a seq and times')
  }
  if (encoding !== 'jpeg' && payload.length !== width * height * depth) {
    throw new WireError(`pixels must be ${width * height * depth} bytes, got ${payload.length}`)
  }
  return new Frame(header, payload)
}

/**
 * Read `size` bytes of a daemon's file in shared memory, or all of it. Node maps no files, so this is a copy.
 * Throws where that cannot be: on another host, for another user.
 */
export function readShared(folder, name, { offset = 0, size } = {}) {
  // The name came over a socket: it must not lead anywhere else.
  if (!/^deblurd-[^/\0]*$/.test(name)) throw new WireError(`a file in shared memory must be deblurd-..., got ${name}`)
  const file = openSync(join(folder, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const found = fstatSync(file)
    size ??= found.size
    if (!found.isFile() || found.uid !== process.geteuid()) throw new Error(`${name} is not a file of this user`)
    if (!(size <= found.size)) throw new Error(`${name} must hold ${size} bytes, got ${found.size}`)
    const bytes = Buffer.allocUnsafeSlow(size)
    if (readSync(file, bytes, 0, size, offset) !== size) throw new Error(`${name} ends before ${offset} + ${size}`)
    return bytes
  } finally {
    closeSync(file)
  }
}

/** This process sees the daemon's shared memory, as the same user. */
export function isReadable({ folder, probe, probe_value: value }) {
  try {
    return readShared(folder, probe).toString() === value
  } catch {
    return false
  }
}

/** The bytes of a request. */
export function request(kind, fields = {}) {
  const bytes = Buffer.from(JSON.stringify({ version: WIRE_VERSION, kind, ...fields }))
  if (bytes.length > 4096) throw new RangeError(`a request of ${bytes.length} bytes is too long: name fewer streams`)
  return bytes
}

/** Where requests go to the daemon that publishes at `endpoint`. */
export function controlEndpoint(endpoint) {
  if (endpoint.startsWith('ipc://')) return `${endpoint}.control`
  const [, host, port] = endpoint.match(/^(tcp:\/\/.+:)(\d+)$/) ?? []
  if (!(port >= 1 && port <= 65534)) {
    throw new RangeError(`endpoint must be tcp://HOST:PORT or ipc://PATH, got ${endpoint}`)
  }
  return `${host}${Number(port) + 1}`
}
