/*
 * Owns what is carried over from the MongoClient that Mongoose made to the native one: picks the options that its
 * driver parsed, and refuses by name those that cannot be carried. It opens nothing.
 */
'use strict';

const { unsupportedOption } = require('./errors');

const MECHANISMS = ['DEFAULT', 'SCRAM-SHA-1', 'SCRAM-SHA-256', 'MONGODB-X509', 'PLAIN'];

/** Options whose meaning the Rust driver shares, by the same name. */
const SHARED = [
  'appName',
  'replicaSet',
  'directConnection',
  'loadBalanced',
  'zlibCompressionLevel',
  'maxPoolSize',
  'minPoolSize',
  'maxConnecting',
  'maxIdleTimeMS',
  'connectTimeoutMS',
  'heartbeatFrequencyMS',
  'localThresholdMS',
  'serverSelectionTimeoutMS',
  'socketTimeoutMS',
  'serverMonitoringMode',
];

/** Options without which the native client would reach another server, or reach it in another way. */
const REFUSED = [
  'autoEncryption',
  'proxyHost',
  'lookup',
  'pfx',
  'secureContext',
  'tlsCRLFile',
  'crl',
  'pskCallback',
  'ALPNProtocols',
  'SNICallback',
  'ciphers',
  'ecdhCurve',
  'minDHSize',
  'secureProtocol',
];

function isSet(value) {
  return value !== undefined && value !== null && value !== false;
}

function refuse(options) {
  const refused = REFUSED.find((name) => isSet(options[name]));
  if (refused) throw unsupportedOption(refused);
  if (options.tls && isSet(options.servername)) throw unsupportedOption('servername');
  // The driver puts a function of its own there for tlsAllowInvalidHostnames; without a verified certificate, which
  // goes without a verified name too, none is called.
  const { checkServerIdentity } = options;
  if (typeof checkServerIdentity === 'function' && options.rejectUnauthorized !== false) {
    const ignores = /^\(\) => undefined$/.test(String(checkServerIdentity));
    throw unsupportedOption(ignores ? 'tlsAllowInvalidHostnames' : 'checkServerIdentity');
  }
}

function credentials({ username, password, source, mechanism, mechanismProperties }) {
  if (!MECHANISMS.includes(String(mechanism)))
    throw unsupportedOption(`authMechanism=${mechanism}`);
  const plain = Object.entries(mechanismProperties ?? {}).filter(([, value]) => isSet(value));
  return {
    username: username || undefined,
    password: password ?? undefined,
    source,
    mechanism: String(mechanism),
    properties: plain.length > 0 ? Object.fromEntries(plain) : undefined,
  };
}

function pem(material) {
  if (Array.isArray(material)) return material.map(pem).join('\n');
  return typeof material === 'string' ? material : Buffer.from(material).toString('utf8');
}

/** The key as the Rust driver can read it, whatever form and passphrase Node took it in. */
function privateKey({ key, passphrase }) {
  // Required here, as below: most connections need neither, and loading them is most of what `require` would cost.
  const { createPrivateKey } = require('node:crypto');
  const one = Array.isArray(key) ? key[0] : key;
  const { pem: material = one, passphrase: own = passphrase } = one?.pem ? one : {};
  return createPrivateKey({ key: material, format: 'pem', passphrase: own })
    .export({ type: 'pkcs8', format: 'pem' })
    .toString();
}

/** Node trusts its own root certificates and those of NODE_EXTRA_CA_CERTS, unless there is a `ca`. */
function authorities({ ca }) {
  if (ca !== undefined) return pem(ca);
  const extra = process.env.NODE_EXTRA_CA_CERTS;
  if (!extra) return undefined;
  return pem([...require('node:tls').rootCertificates, require('node:fs').readFileSync(extra)]);
}

function tls(options) {
  return {
    ca: authorities(options),
    certificateKey: options.cert
      ? `${pem(options.cert)}\n${privateKey({ ...options, key: options.key ?? options.cert })}`
      : undefined,
    allowInvalidCertificates: options.rejectUnauthorized === false,
  };
}

function host({ host: name, port, socketPath }) {
  return socketPath ? { path: socketPath } : { host: name, port };
}

/** The options for the native client, as plain values; undefined where there is none. */
function connectionOptions(options) {
  refuse(options);
  const carried = { hosts: options.hosts.map(host) };
  for (const name of SHARED) {
    if (options[name] !== undefined && options[name] !== null) carried[name] = options[name];
  }
  if (options.credentials) carried.credentials = credentials(options.credentials);
  if (options.tls) carried.tls = tls(options);
  if (options.serverApi) {
    const { version, strict, deprecationErrors } = options.serverApi;
    carried.serverApi = { version, strict, deprecationErrors };
  }
  carried.compressors = (options.compressors ?? []).filter((name) => name !== 'none');
  return carried;
}

module.exports = { connectionOptions };
