/*
 * Knows the names of native binaries: which file and which packages the generated binding.js looks for on a machine.
 * It must agree with binding.js (spec/package.spec.js compares them), and it must neither build nor load anything.
 */
'use strict';

const { readFileSync } = require('node:fs');

/** The name in package.json, `napi.binaryName`. */
const BINARY_NAME = 'mongoose-lock-release';

/** The C libraries that can differ per architecture, by Linux's names of Node: [glibc, musl or none]. */
const LINUX_TRIPLES = {
  x64: ['linux-x64-gnu', 'linux-x64-musl'],
  arm64: ['linux-arm64-gnu', 'linux-arm64-musl'],
  arm: ['linux-arm-gnueabihf', 'linux-arm-musleabihf'],
  loong64: ['linux-loong64-gnu', 'linux-loong64-musl'],
  riscv64: ['linux-riscv64-gnu', 'linux-riscv64-musl'],
  ppc64: ['linux-ppc64-gnu', 'linux-ppc64-gnu'],
  s390x: ['linux-s390x-gnu', 'linux-s390x-gnu'],
};

const OTHER_TRIPLES = {
  win32: { x64: 'win32-x64-msvc', ia32: 'win32-ia32-msvc', arm64: 'win32-arm64-msvc' },
  darwin: { x64: 'darwin-x64', arm64: 'darwin-arm64' },
  freebsd: { x64: 'freebsd-x64', arm64: 'freebsd-arm64', ppc64: 'freebsd-ppc64' },
};

/**
 * Whether this Linux uses musl instead of glibc; asked in the order in which binding.js asks, so that both agree even
 * on a machine that has both.
 */
function isMusl() {
  if (process.platform !== 'linux') return false;
  try {
    return readFileSync('/usr/bin/ldd', 'utf8').includes('musl');
  } catch {
    // No ldd, as in slim images: Node's own report knows what it is linked with.
  }
  process.report.excludeNetwork = true;
  const report = process.report.getReport();
  if (report.header.glibcVersionRuntime) return false;
  return report.sharedObjects.some((file) => /libc\.musl-|ld-musl-/.test(file));
}

/**
 * The platform as napi names it, like `linux-x64-gnu`; undefined where there is none.
 *
 * @param {{ platform?: string, arch?: string, musl?: boolean }} [machine] Default: this one.
 */
function platformTriple(machine = {}) {
  const { platform = process.platform, arch = process.arch } = machine;
  if (platform !== 'linux') return OTHER_TRIPLES[platform]?.[arch];
  const musl = machine.musl ?? isMusl();
  return LINUX_TRIPLES[arch]?.[musl ? 1 : 0];
}

/** The file beside package.json that binding.js tries first. */
function binaryFile(triple) {
  return `${BINARY_NAME}.${triple}.node`;
}

/** The packages with a prebuilt binary, in the order in which binding.js tries them. */
function prebuiltPackages(triple) {
  const triples = triple.startsWith('darwin-') ? ['darwin-universal', triple] : [triple];
  return triples.map((name) => `${BINARY_NAME}-${name}`);
}

/** What cargo calls the library that it builds for a platform of Node's. */
function libraryFile(platform = process.platform) {
  const name = BINARY_NAME.replaceAll('-', '_');
  if (platform === 'win32') return `${name}.dll`;
  return platform === 'darwin' ? `lib${name}.dylib` : `lib${name}.so`;
}

module.exports = { binaryFile, isMusl, libraryFile, platformTriple, prebuiltPackages };
