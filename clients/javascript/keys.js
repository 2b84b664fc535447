/**
 * CURVE keys: who this client is, and whom it takes for the daemon.
 *
 * Knows key files; what is done with keys is ZeroMQ's.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
import { readFileSync } from 'node:fs'

/** CURVE keys from `NAME.key_secret` and the daemon's `NAME.key`, as `deblurd keys new` makes them. */
export function loadKeys(secretFile, serverFile) {
  const read = (path, name) => {
    const found = readFileSync(path, 'utf8').match(new RegExp(`^\\s*${name}\\s*=\\s*"(.{40})"`, 'm'))
    if (!found) throw new Error(`${path}: must hold a ${name} of 40 characters in quotes`)
    return found[1]
  }
  return {
    publicKey: read(secretFile, 'public-key'),
    secretKey: read(secretFile, 'secret-key'),
    serverKey: read(serverFile, 'public-key'),
  }
}
