#!/usr/bin/env node
/**
 * Print a line of JSON for each frame of a deblurd daemon, and for each change of the daemon's state.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
import { parseArgs } from 'node:util'

import { loadKeys, Subscriber, VersionError, WireError } from './index.js'

const USAGE = `usage: watch ENDPOINT [STREAM...] [--mode newest|paced|shared] [--control ENDPOINT]
             [--keys SECRET_FILE --server PUBLIC_FILE] [--on-lost wait|throw]`
const print = (line) => console.log(JSON.stringify(line))
process.stdout.on('error', () => process.exit()) // nobody reads any more

/** The next frame; a malformed message is passed over. */
async function next(subscriber) {
  for (;;) {
    try {
      return await subscriber.receive()
    } catch (error) {
      if (!(error instanceof WireError) || error instanceof VersionError) throw error
      console.error(`watch: ${error.message}`)
    }
  }
}

try {
  const text = { type: 'string' }
  const { values, positionals } = parseArgs({
    options: { mode: text, control: text, keys: text, server: text, 'on-lost': text },
    allowPositionals: true,
  })
  const { mode, control, keys: secretFile, server: serverFile } = values
  const [endpoint, ...streams] = positionals
  if (!endpoint || !secretFile !== !serverFile) throw new Error(USAGE)
  const subscriber = new Subscriber(endpoint, {
    streams,
    mode,
    control,
    onLost: values['on-lost'],
    keys: secretFile && loadKeys(secretFile, serverFile),
  })
  subscriber.on('state', (state) => print({ state, run_id: subscriber.runId }))
  for (;;) {
    const frame = await next(subscriber)
    const { stream, seq, width, height, pixelFormat, encoding, pixels, ageMs } = frame
    const sum = pixels.reduce((sum, byte) => sum + byte, 0)
    print({ stream, seq, width, height, pixel_format: pixelFormat, encoding, sum, age_ms: ageMs })
  }
} catch (error) {
  console.error(`watch: ${error.message}`)
  process.exit(1)
}
