/**
 * A Redis server of the benchmark's own: on a free port of 127.0.0.1, from the redis-server on the
 * PATH, in memory alone. Ends with this process.
 */
'use strict';

const { execFileSync, spawn } = require('node:child_process');
const { once } = require('node:events');
const net = require('node:net');
const os = require('node:os');
const { setTimeout: sleep } = require('node:timers/promises');

const PROGRAM = 'redis-server';
const HOST = '127.0.0.1';
const START_MS = 15_000;

/** The version of the installed redis-server, or null if there is none. */
function redisVersion() {
  try {
    const printed = execFileSync(PROGRAM, ['--version'], { encoding: 'utf8' });
    return /v=(\S+)/.exec(printed)?.[1] ?? printed.trim();
  } catch (error) {
    if (error.code === 'ENOENT') return null;
    throw error;
  }
}

/** Starts it and resolves once it answers to `{ uri, pids, stop() }`. */
async function startRedis() {
  const port = await freePort();
  const options = { port, bind: HOST, save: '', appendonly: 'no', daemonize: 'no' };
  const args = Object.entries(options).flatMap(([name, value]) => [`--${name}`, `${value}`]);
  const child = spawn(PROGRAM, args, { cwd: os.tmpdir(), stdio: 'ignore' });
  const exited = once(child, 'exit');
  const release = endWithThisProcess(child);
  const stop = async () => {
    release();
    child.kill('SIGKILL');
    await exited;
  };

  const deadline = performance.now() + START_MS;
  while (!(await answers(port))) {
    if (child.exitCode !== null || performance.now() > deadline) {
      await stop();
      throw new Error(`${PROGRAM} did not start on port ${port}`);
    }
    await sleep(50);
  }
  return { uri: `redis://${HOST}:${port}`, pids: [child.pid], stop };
}

async function freePort() {
  const server = net.createServer().listen(0, HOST);
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

function answers(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, HOST, () => socket.write('PING\r\n'));
    const end = (answer) => {
      socket.destroy();
      resolve(answer);
    };
    socket.on('data', (data) => end(data.toString().startsWith('+PONG')));
    socket.on('error', () => end(false));
    socket.setTimeout(1000, () => end(false));
  });
}

/** By itself, by an exception or by a signal. Returns what undoes it. */
function endWithThisProcess(child) {
  const kill = () => child.kill('SIGKILL');
  const killAndEnd = (signal) => {
    kill();
    // Who else listens decides how to end, as deployment.js does.
    if (process.listenerCount(signal) === 0) process.kill(process.pid, signal);
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'];
  process.on('exit', kill);
  for (const signal of signals) process.once(signal, killAndEnd);
  return () => {
    process.off('exit', kill);
    for (const signal of signals) process.off(signal, killAndEnd);
  };
}

module.exports = { redisVersion, startRedis };
