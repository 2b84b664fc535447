/**
 * Restored frames from a deblurd daemon, for Node.js.
 *
 *     const subscriber = new Subscriber('tcp://127.0.0.1:5555', { streams: ['porch'] })
 *     for await (const frame of subscriber) show(frame.pixels, frame.width, frame.height)
 *
 * Knows when to ask the daemon for what; what a message holds is in wire.js.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
import { EventEmitter } from 'node:events'
import { setImmediate as turn } from 'node:timers/promises'
import { Dealer, Subscriber as Sub } from 'zeromq'

import { controlEndpoint, isReadable, readShared, request, toFrame, unpack, WireError } from './wire.js'

export { loadKeys } from './keys.js'
export { Frame, VersionError, WireError } from './wire.js'

const PING_MS = 400
const PINGS_TO_LOSE = 3
const REOPEN_MS = 1000
const ANSWER_MS = 6000 // a daemon answers within 5 s, or the connection broke

/** The daemon does not let this client in; the message says why. Another `receive` tries again. */
export class RefusedError extends Error {
  name = 'RefusedError'
}

/** The daemon was there, and answers no more. */
export class LostError extends Error {
  name = 'LostError'
}

/**
 * Frames from a daemon: `for await` gives them, or `receive`. Emits `state`.
 *
 * - mode: `newest` gives the newest frame of each stream, each stream in turn, whatever was missed meanwhile;
 *   `paced` asks for each frame: a receiver that keeps up gets all, and nothing travels in vain; `shared` is the same,
 *   with frames read from shared memory, and as `paced` where that cannot be.
 * - streams: names; all that the daemon has, if none are given.
 * - keys: `{ publicKey, secretKey, serverKey }` in Z85, where the daemon asks for them.
 * - control: the daemon's control endpoint, if it is not the one that belongs to the endpoint.
 * - onLost: `wait` for a lost daemon to come back, or `throw` a LostError.
 */
export class Subscriber extends EventEmitter {
  /** `connecting` until the daemon first answers, then `live`; `lost` when it answers no more, noticed within 1.6 s. */
  state = 'connecting'
  /** Changes when the daemon restarts; undefined before it first answers. */
  runId

  #endpoint
  #options
  #pulse // pings have a connection of their own: never behind a frame
  #asker
  #listeners = []
  #pinging
  #reopening
  #unanswered = 0
  #brokenOff = 0
  #trouble // what the next `receive` throws
  #waiting = new Map() // the newest message of each stream, in the order of turns
  #askAgainMs = 0 // when, if the last request is not answered
  #folder // of shared memory, if this process can read it
  #released = []
  #ring = () => {}
  #closed = false

  constructor(endpoint, { streams, mode = 'newest', keys, control, onLost = 'wait' } = {}) {
    super()
    check('mode', mode, ['newest', 'paced', 'shared'])
    check('onLost', onLost, ['wait', 'throw'])
    this.#endpoint = endpoint
    control ??= controlEndpoint(endpoint)
    streams = streams?.length ? streams : null
    this.#options = { streams, mode, keys, control, throws: onLost === 'throw' }
    request('next', { streams }) // if the names do not fit, here is where to say so
    this.#open()
    this.#pinging = setInterval(() => this.#beat(), PING_MS)
  }

  /** The next frame; null when none comes within `timeoutMs`, or when the subscriber is closed. One at a time. */
  async receive(timeoutMs = Infinity) {
    const deadline = performance.now() + timeoutMs
    await turn() // what came while the caller was at work is read in the second turn of the event loop,
    await turn() // and replaces what had come before
    while (!this.#closed) {
      const trouble = this.#trouble
      this.#trouble = undefined
      if (trouble) throw trouble
      const frame = this.#take()
      if (frame) return frame
      if (this.#options.throws && this.state === 'lost') {
        throw new LostError(`${this.#endpoint}: the daemon answers no more`)
      }
      this.#ask()
      const leftMs = deadline - performance.now()
      if (leftMs <= 0) return null
      await this.#rung(leftMs)
    }
    return null
  }

  async *[Symbol.asyncIterator]() {
    for (let frame; (frame = await this.receive()); ) yield frame
  }

  /** Disconnect; a `receive` that waits ends. */
  close() {
    this.#closed = true
    clearInterval(this.#pinging)
    clearTimeout(this.#reopening)
    this.#disconnect()
    this.#ring()
  }

  #disconnect() {
    for (const socket of [this.#pulse, this.#asker, ...this.#listeners]) socket?.close()
    this.#listeners = []
  }

  /** Connect everything anew. */
  #open() {
    const { mode, streams, control } = this.#options
    this.#disconnect()
    this.#brokenOff = 0
    this.#pulse = this.#make(Dealer, { immediate: true, sendTimeout: 0 }) // no ping waits for a daemon to come
    this.#watchHandshakes(this.#pulse.events)
    this.#connect(this.#pulse, control, (answer) => this.#hear(answer))
    this.#beat()
    if (mode === 'newest') return this.#listen(streams ?? [])
    this.#askAgainMs = 0
    this.#asker = this.#make(Dealer)
    this.#connect(this.#asker, control, (answer) => this.#put(answer))
  }

  /** ZeroMQ keeps the newest message of a whole socket: so, one socket for each stream. */
  #listen(streams) {
    for (const socket of this.#listeners) socket.close()
    this.#listeners = streams.map((stream) => {
      const socket = this.#make(Sub, { conflate: true })
      socket.subscribe(`${stream}\0`) // ZeroMQ matches prefixes
      socket.events.on('handshake:error:auth', (event) => this.#shutOut(event))
      this.#connect(socket, this.#endpoint, (message) => this.#put(message))
      return socket
    })
  }

  #make(Kind, options) {
    const { keys, control } = this.#options
    return new Kind({
      linger: 0,
      ipv6: control.startsWith('tcp://['),
      tcpKeepalive: 1, // no ZeroMQ heartbeats: a long frame counts as a dead peer
      tcpKeepaliveIdle: 2,
      tcpKeepaliveInterval: 1,
      tcpKeepaliveCount: 3,
      ...(keys && { curvePublicKey: keys.publicKey, curveSecretKey: keys.secretKey, curveServerKey: keys.serverKey }),
      ...options,
    })
  }

  async #connect(socket, endpoint, heard) {
    socket.connect(endpoint)
    for await (const [message] of socket) {
      try {
        heard(message)
      } catch (error) {
        this.#fail(error instanceof TypeError ? new WireError(`a field is of the wrong kind: ${error.message}`) : error)
      }
    }
  }

  #fail(error) {
    this.#trouble = error
    this.#ring()
  }

  /** Where a handshake fails, ZeroMQ says nothing to the sockets, and does not always try again. */
  #watchHandshakes(events) {
    const keys = this.#options.keys
    events.on('handshake', () => (this.#brokenOff = 0))
    events.on('handshake:error:auth', (event) => this.#shutOut(event))
    events.on('handshake:error:protocol', ({ error }) => {
      if (error.code !== 'ERR_ZMTP_MECHANISM_MISMATCH') return this.#refused('it is no deblurd')
      this.#refused(keys ? 'it has no keys, this client has' : 'it wants keys, this client has none')
    })
    events.on('handshake:error:other', ({ error }) => {
      // The same comes from a daemon that ends just now: so, twice.
      if (!['EPIPE', 'ECONNRESET'].includes(error.code) || ++this.#brokenOff < 2) return
      this.#refused(keys ? 'its key is another, or it has none' : 'it wants keys, this client has none')
    })
  }

  #shutOut({ error }) {
    this.#refused(error.status === 500 ? 'it has as many clients as it takes' : "this client's key is not allowed")
  }

  #refused(why) {
    if (this.#closed) return
    clearTimeout(this.#reopening)
    this.#reopening = setTimeout(() => this.#open(), REOPEN_MS)
    this.#fail(new RefusedError(`${this.#endpoint}: ${why}`))
  }

  /** Ping. After a long block of the event loop one is due, not many: silence is what was not answered meanwhile. */
  #beat() {
    if (this.state === 'live' && this.#unanswered >= PINGS_TO_LOSE) this.#become('lost')
    this.#unanswered += 1
    this.#say(this.state === 'live' ? 'ping' : 'hello')
    this.#ring() // a request may be due, too
  }

  #say(kind) {
    this.#pulse.send(request(kind)).catch(() => {}) // there is no daemon now
  }

  #become(state) {
    if (state === this.state) return
    this.state = state
    this.emit('state', state)
  }

  /** An answer on the connection for pings. */
  #hear(message) {
    this.#unanswered = 0
    const { header } = unpack(message)
    if (header.kind === 'welcome') this.#greet(header)
    if (header.kind === 'refused') this.#fail(new RefusedError(`${this.#endpoint}: ${header.reason}`))
    if (header.kind === 'pong' && header.run_id !== this.runId) this.#say('hello')
  }

  #greet({ run_id: runId, streams, shared }) {
    const { mode } = this.#options
    const another = runId !== this.runId
    if (another) this.#released = [] // those of the one before
    if (another || this.state !== 'live') this.#askAgainMs = 0 // it has forgotten
    this.runId = runId
    this.#folder = mode === 'shared' && shared && isReadable(shared) ? shared.folder : undefined
    if (mode === 'newest' && !this.#options.streams) this.#listen(streams)
    this.#become('live')
    this.#ring()
  }

  /** Ask for the newest frame of a stream whose turn it is, unless the last request is still to be answered. */
  #ask() {
    if (!this.#asker || this.state !== 'live' || performance.now() < this.#askAgainMs) return
    this.#askAgainMs = performance.now() + ANSWER_MS
    const { streams } = this.#options
    const release = this.#released.splice(0)
    this.#asker.send(request('next', { streams, shared: !!this.#folder, release })).catch((error) => this.#fail(error))
  }

  /** A frame, or another answer to what was asked. */
  #put(message) {
    this.#askAgainMs = 0
    const { header, payload } = unpack(message)
    if (header.kind === 'refused') throw new RefusedError(`${this.#endpoint}: ${header.reason}`)
    if (header.kind === 'frame') {
      const bytes = header.encoding === 'shared' ? this.#borrow(header) : payload
      const frame = bytes && toFrame(header, bytes)
      if (frame) this.#waiting.set(frame.stream, frame) // one that waits already keeps its turn
    }
    this.#ring()
  }

  /** The pixels of a frame in shared memory; nothing if they are not there. */
  #borrow({ run_id: runId, shared: { file, offset, size, token } }) {
    if (runId !== this.runId || !this.#folder) return undefined
    this.#released.push(token)
    try {
      return readShared(this.#folder, file, { offset, size })
    } catch {
      this.#folder = undefined // as bytes, until a new welcome proves that it can be read
      this.#say('hello')
      return undefined
    }
  }

  #take() {
    const [first] = this.#waiting.values()
    this.#waiting.delete(first?.stream)
    return first
  }

  /** Something has happened, or `timeoutMs` have passed. */
  #rung(timeoutMs) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.min(timeoutMs, 2 ** 31 - 1))
      this.#ring = () => resolve(clearTimeout(timer))
    })
  }
}

function check(name, value, allowed) {
  if (!allowed.includes(value)) throw new RangeError(`${name} must be ${allowed.join(' or ')}, got ${value}`)
}
