'use strict';
/*
 * A relay in front of one MongoDB server that understands where the messages begin and end, so that a fault hits just
 * the command it is meant for: the request lost, the answer lost after the command was applied, the request delivered
 * long after its sender has given up. Besides it delays, blackholes and resets everything, when told to. What it lets
 * through is unchanged, but for the members' addresses in a hello, which it replaces so that clients of a replica set
 * stay behind their relays.
 *
 * Message header and OP_MSG: https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
 */

const net = require('node:net');
const { once } = require('node:events');
const { BSON } = require('../support/mongoose').mongo;

const HOST = '127.0.0.1';
const HEADER = 16;
const OP_REPLY = 1;
const OP_MSG = 2013;

/** @typedef {'loseRequest' | 'loseAnswer' | { late: number } | { loseAnswerAfter: () => Promise<void> }} Fault */

class WireRelay {
  /** @param {{ host?: string, port: number }} target the server */
  static async start(target) {
    const relay = new WireRelay(target);
    relay.#server.listen(0, HOST);
    await once(relay.#server, 'listening');
    return relay;
  }

  #target;
  #server;
  #links = new Set();
  #isBlackhole = false;

  constructor({ host = HOST, port }) {
    this.#target = { host, port };
    /** @type {undefined | ((command: object) => Fault | undefined)} asked for each findAndModify, update and find */
    this.judge = undefined;
    /** Milliseconds by which everything is late, in each direction. */
    this.delay = 0;
    /** Real address -> the address of its relay, for the hellos of a replica set. */
    this.addresses = new Map();
    /** How many commands were hit, by the fault's name. */
    this.hits = {};
    this.#server = net.createServer((client) => this.#join(client));
  }

  get port() {
    return this.#server.address().port;
  }

  /** While true nothing gets through, and nobody is told; afterwards what was held back arrives, as with TCP. */
  get blackhole() {
    return this.#isBlackhole;
  }

  set blackhole(isBlackhole) {
    this.#isBlackhole = isBlackhole;
    if (isBlackhole) return;
    for (const { toServer, toClient } of this.#links) {
      for (const lane of [toServer, toClient]) {
        for (const bytes of lane.held.splice(0)) this.#pass(lane, bytes);
      }
    }
  }

  /** Where clients connect to, with no member of a replica set found besides. */
  uriFor(dbName, query = {}) {
    const parameters = new URLSearchParams({ directConnection: 'true', ...query });
    return `mongodb://${HOST}:${this.port}/${dbName}?${parameters}`;
  }

  /** Fails the next `times` commands that satisfy `matches`. */
  hitNext(fault, matches = () => true, times = 1) {
    let left = times;
    this.judge = (command) => {
      if (left === 0 || !matches(command)) return undefined;
      left -= 1;
      return fault;
    };
  }

  /** Cuts all connections, as a router does that restarts. */
  reset() {
    for (const { client, server } of this.#links) {
      client.resetAndDestroy();
      server.destroy();
    }
  }

  async stop() {
    for (const { client, server } of this.#links) {
      client.destroy();
      server.destroy();
    }
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, 'close');
  }

  #join(client) {
    const server = net.connect(this.#target);
    const link = {
      client,
      server,
      toServer: { socket: server, held: [], queue: [], free: 0 },
      toClient: { socket: client, held: [], queue: [], free: 0 },
      pending: new Map(),
      isOneWay: false,
    };
    this.#links.add(link);
    client.setNoDelay(true);
    server.setNoDelay(true);
    for (const socket of [client, server]) {
      // The other side going away is what relays are for.
      socket.on('error', () => {});
      socket.on('close', () => {
        if (link.isOneWay && socket === client) return;
        client.destroy();
        server.destroy();
        this.#links.delete(link);
      });
    }
    client.on(
      'data',
      messages((bytes) => this.#request(link, bytes)),
    );
    server.on(
      'data',
      messages((bytes) => this.#answer(link, bytes)),
    );
  }

  #request(link, bytes) {
    const command = this.judge && commandIn(bytes);
    const fault = command && this.judge(command);
    if (fault === undefined) return this.#pass(link.toServer, bytes);
    const name = typeof fault === 'string' ? fault : Object.keys(fault)[0];
    this.hits[name] = (this.hits[name] ?? 0) + 1;
    if (name === 'loseRequest') return link.client.resetAndDestroy();
    if (name === 'late') {
      // The sender sees its connection break; the request is on its way all the same.
      link.isOneWay = true;
      link.client.resetAndDestroy();
      setTimeout(() => link.server.write(bytes), fault.late).unref();
      return undefined;
    }
    link.pending.set(bytes.readInt32LE(4), fault);
    return this.#pass(link.toServer, bytes);
  }

  async #answer(link, bytes) {
    if (link.isOneWay) return link.server.end();
    const fault = link.pending.get(bytes.readInt32LE(8));
    if (fault === undefined) return this.#pass(link.toClient, this.#rewritten(bytes));
    await fault.loseAnswerAfter?.();
    return link.client.resetAndDestroy();
  }

  #pass(lane, bytes) {
    if (this.#isBlackhole) {
      lane.held.push(Buffer.from(bytes));
      return;
    }
    if (this.delay === 0 && lane.queue.length === 0) {
      lane.socket.write(bytes);
      return;
    }
    const now = performance.now();
    // Never before what was sent earlier, also when the delay has become shorter meanwhile.
    lane.free = Math.max(lane.free, now + this.delay);
    lane.queue.push(Buffer.from(bytes));
    setTimeout(() => {
      const first = lane.queue.shift();
      if (lane.socket.writable) lane.socket.write(first);
    }, lane.free - now);
  }

  #rewritten(bytes) {
    if (this.addresses.size === 0 || !bytes.includes('\u0004hosts\0')) return bytes;
    const opcode = bytes.readInt32LE(12);
    const start = opcode === OP_MSG ? HEADER + 5 : HEADER + 20;
    if (opcode !== OP_MSG && opcode !== OP_REPLY) return bytes;
    const hello = BSON.deserialize(bytes.subarray(start));
    const relayed = (address) => this.addresses.get(address) ?? address;
    for (const name of ['me', 'primary']) {
      if (hello[name]) hello[name] = relayed(hello[name]);
    }
    for (const name of ['hosts', 'passives']) {
      if (hello[name]) hello[name] = hello[name].map(relayed);
    }
    const body = BSON.serialize(hello);
    const rewritten = Buffer.concat([bytes.subarray(0, start), body]);
    rewritten.writeInt32LE(rewritten.length, 0);
    return rewritten;
  }
}

/** A listener for 'data' that calls `each` with whole messages. */
function messages(each) {
  let rest = Buffer.alloc(0);
  return (chunk) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    while (rest.length >= 4) {
      const length = rest.readInt32LE(0);
      if (rest.length < length) return;
      each(rest.subarray(0, length));
      rest = rest.subarray(length);
    }
  };
}

/** The commands that faults are about, as documents; the others are not worth the parsing. */
function commandIn(bytes) {
  if (bytes.readInt32LE(12) !== OP_MSG || bytes[HEADER + 4] !== 0) return undefined;
  const start = HEADER + 5;
  // The name of a command is its first element: a type byte, then the name.
  const name = bytes.toString('latin1', start + 5, bytes.indexOf(0, start + 5));
  if (!['findAndModify', 'update', 'find'].includes(name)) return undefined;
  return BSON.deserialize(bytes.subarray(start, start + bytes.readInt32LE(start)));
}

module.exports = { WireRelay };
