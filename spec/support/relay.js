/*
 * A TCP relay in front of a server whose target can be changed while connections are open: what is connected stays
 * where it is, what comes new goes to the new target. With `socks` it is a SOCKS 5 proxy (no authentication, CONNECT
 * alone) that goes wherever the client asks. It never looks at what it carries.
 */
'use strict';

const net = require('node:net');
const { once } = require('node:events');

const HOST = '127.0.0.1';

class Relay {
  static async start(target, options) {
    const relay = new Relay(target, options);
    relay.#server.listen(0, HOST);
    await once(relay.#server, 'listening');
    return relay;
  }

  #sockets = new Set();
  #server;

  /** @param {{ host: string, port: number }} [target] where new connections go; not used with `socks` */
  constructor(target, { socks = false } = {}) {
    this.target = target;
    /** How many connections have come. */
    this.count = 0;
    this.host = HOST;
    this.#server = net.createServer((client) => {
      this.count += 1;
      this.#keep(client);
      if (socks) this.#greet(client);
      else this.#join(client, this.target);
    });
  }

  get port() {
    return this.#server.address().port;
  }

  async stop() {
    for (const socket of this.#sockets) socket.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }

  #join(client, { host, port }, opened) {
    const server = net.connect({ host, port }, () => {
      opened?.();
      client.pipe(server);
      server.pipe(client);
    });
    this.#keep(server);
    client.once('close', () => server.destroy());
    server.once('close', () => client.destroy());
  }

  /** RFC 1928: the greeting, then one CONNECT request with an IPv4 address or a host name. */
  #greet(client) {
    client.once('data', () => {
      client.write(Buffer.from([5, 0]));
      client.once('data', (request) => {
        const named = request[3] === 3;
        const end = named ? 5 + request[4] : 8;
        const host = named
          ? request.toString('latin1', 5, end)
          : [...request.subarray(4, end)].join('.');
        const port = request.readUInt16BE(end);
        this.#join(client, { host, port }, () => {
          client.write(Buffer.from([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]));
        });
      });
    });
  }

  #keep(socket) {
    this.#sockets.add(socket);
    // The other side going away is what relays are for.
    socket.on('error', () => {});
    socket.once('close', () => this.#sockets.delete(socket));
  }
}

module.exports = { Relay };
