/*
 * Makes throw-away X.509 certificates with the openssl command-line tool: authorities, servers, clients, and the two
 * kinds of server certificate that TLS libraries disagree about. Nothing is checked in, so nothing here can expire.
 * The caller makes sure that openssl is there (tools.js) and calls `remove`.
 */
'use strict';

const { execFile } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { promisify } = require('node:util');

const run = promisify(execFile);

const DAYS = '3';
/** The names under which the specs' servers are reached. */
const LOCAL = ['DNS:localhost', 'IP:127.0.0.1', 'IP:::1'];

/** A directory of certificates. Every method resolves to paths in it. */
class Certificates {
  constructor() {
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mongoose-lock-release-tls-'));
  }

  /** A certificate authority: `{ certificate, key }`. */
  async authority(name = 'authority') {
    const { certificate, key } = this.#paths(name);
    await this.#openssl(
      ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', DAYS, '-keyout', key],
      ['-out', certificate, '-subj', `/O=Lock Release Specs/CN=${name}`],
      // The section's name is openssl's own default, which would otherwise be merged in.
      ['-config', this.#write(`${name}.cnf`, AUTHORITY_CONFIG)],
    );
    return { certificate, key };
  }

  /** A server's certificate (X.509 v3): `{ certificate, key, pem }`; `pem` holds both, as mongod wants them. */
  async server(authority, name = 'server', names = LOCAL) {
    return this.#issue(authority, name, `/O=Lock Release Specs/OU=Servers/CN=${name}`, [
      'basicConstraints=critical,CA:FALSE',
      'keyUsage=critical,digitalSignature,keyEncipherment',
      'extendedKeyUsage=serverAuth,clientAuth',
      `subjectAltName=${names.join(',')}`,
    ]);
  }

  /**
   * A client's certificate: as `server`, and `user`, the name that mongod knows it by in $external. Its organisational
   * unit differs from the servers', or mongod would take it for a cluster member.
   */
  async client(authority, name = 'client') {
    const issued = await this.#issue(
      authority,
      name,
      `/O=Lock Release Specs/OU=Clients/CN=${name}`,
      [
        'basicConstraints=critical,CA:FALSE',
        'keyUsage=critical,digitalSignature',
        'extendedKeyUsage=clientAuth',
      ],
    );
    const { stdout } = await run('openssl', [
      ...['x509', '-in', issued.certificate, '-noout', '-subject', '-nameopt', 'RFC2253'],
    ]);
    return { ...issued, user: stdout.trim().replace(/^subject=\s*/, '') };
  }

  /** A server's certificate that signed itself, as `openssl req -x509` makes them: marked as an authority. */
  async selfSigned(name = 'selfsigned') {
    const { certificate, key, pem } = this.#paths(name);
    const config = `${AUTHORITY_CONFIG}subjectAltName = ${LOCAL.join(',')}\n`;
    await this.#openssl(
      ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', DAYS, '-keyout', key],
      ['-out', certificate, '-subj', '/CN=localhost'],
      ['-config', this.#write(`${name}.cnf`, config)],
    );
    this.#join(pem, certificate, key);
    return { certificate, key, pem };
  }

  /** A server's certificate of the old X.509 v1, which has no extensions: its host is in the CN alone. */
  async version1(authority, name = 'version1') {
    const { certificate, key, pem } = this.#paths(name);
    const request = path.join(this.directory, `${name}.csr`);
    const subject = ['-subj', '/O=Lock Release Specs/OU=Servers/CN=localhost'];
    const signer = ['-CA', authority.certificate, '-CAkey', authority.key, '-days', DAYS];
    const help = await run('openssl', ['req', '-help']).then(
      ({ stdout, stderr }) => stdout + stderr,
    );
    if (help.includes('-x509v1')) {
      // From openssl 3.2 on version 3 is the default, and this option asks for version 1.
      await this.#openssl(
        ['req', '-x509', '-x509v1', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, ...subject],
        [...signer, '-out', certificate],
      );
    } else {
      await this.#openssl([
        'req',
        '-newkey',
        'rsa:2048',
        '-nodes',
        '-keyout',
        key,
        '-out',
        request,
        ...subject,
      ]);
      await this.#openssl([
        'x509',
        '-req',
        '-in',
        request,
        ...signer,
        '-CAcreateserial',
        '-out',
        certificate,
      ]);
    }
    const { stdout } = await run('openssl', ['x509', '-in', certificate, '-noout', '-text']);
    if (!/Version: 1 /.test(stdout)) throw new Error('openssl made no X.509 v1 certificate');
    this.#join(pem, certificate, key);
    return { certificate, key, pem };
  }

  /** A copy of `issued` whose private key (PKCS #8) is encrypted: `{ certificate, key, pem }`. */
  async encrypted(issued, passphrase, name = 'encrypted') {
    const { key, pem } = this.#paths(name);
    await this.#openssl(
      ['pkcs8', '-topk8', '-v2', 'aes-256-cbc', '-in', issued.key, '-out', key],
      ['-passout', `pass:${passphrase}`],
    );
    this.#join(pem, issued.certificate, key);
    return { certificate: issued.certificate, key, pem };
  }

  /** `issued` as a PKCS #12 bundle without a passphrase; resolves to its path. */
  async bundle(issued, name = 'bundle') {
    const file = path.join(this.directory, `${name}.p12`);
    await this.#openssl(
      ['pkcs12', '-export', '-in', issued.certificate, '-inkey', issued.key, '-out', file],
      ['-passout', 'pass:'],
    );
    return file;
  }

  remove() {
    fs.rmSync(this.directory, { recursive: true, force: true });
  }

  async #issue(authority, name, subject, extensions) {
    const { certificate, key, pem } = this.#paths(name);
    const request = path.join(this.directory, `${name}.csr`);
    await this.#openssl(
      ['req', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', request, '-subj', subject],
      ['-config', this.#write(`${name}.cnf`, REQUEST_CONFIG)],
    );
    await this.#openssl(
      ['x509', '-req', '-in', request, '-CA', authority.certificate, '-CAkey', authority.key],
      ['-CAcreateserial', '-days', DAYS, '-out', certificate],
      ['-extfile', this.#write(`${name}.ext`, extensions.join('\n') + '\n')],
    );
    this.#join(pem, certificate, key);
    return { certificate, key, pem };
  }

  #paths(name) {
    return {
      certificate: path.join(this.directory, `${name}.crt`),
      key: path.join(this.directory, `${name}.key`),
      pem: path.join(this.directory, `${name}.pem`),
    };
  }

  #join(target, ...files) {
    fs.writeFileSync(target, files.map((file) => fs.readFileSync(file)).join(''), { mode: 0o600 });
  }

  #write(name, text) {
    const file = path.join(this.directory, name);
    fs.writeFileSync(file, text);
    return file;
  }

  async #openssl(...parts) {
    try {
      await run('openssl', parts.flat(), { cwd: this.directory });
    } catch (error) {
      throw new Error(`openssl ${parts[0][0]} failed: ${error.stderr || error.message}`);
    }
  }
}

const REQUEST_CONFIG = '[req]\ndistinguished_name = name\nprompt = no\n[name]\n';

const AUTHORITY_CONFIG = `[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,digitalSignature,keyCertSign,cRLSign
subjectKeyIdentifier = hash
`;

module.exports = { Certificates };
