/*
 * What may be in the npm package, file by file: `files` in package.json says what npm takes, this says what it should
 * have taken. A new file of the package is named here on purpose. It must not read the tree or run npm.
 */
'use strict';

/** Files that have to be there, each by its name. */
const REQUIRED = [
  'CHANGELOG.md',
  'Cargo.lock',
  'Cargo.toml',
  'LICENSE',
  'README.md',
  'binding.d.ts',
  'binding.js',
  'build.rs',
  'index.d.ts',
  'index.js',
  'package.json',
  'scripts/install.js',
  'scripts/platform.js',
  'src/lib.rs',
];

/** Files that may be there: the rooms that grow. */
const ALLOWED = [/^lib\/[a-z-]+\.js$/, /^src\/([a-z_]+\/)*[a-z_]+\.rs$/];

/** The size that the packed tarball stays under, in bytes. */
const SIZE_LIMIT = 200 * 1024;

/** What is wrong with a package that holds these paths, as sentences; empty when nothing is. */
function complaintsAbout(paths) {
  const missing = REQUIRED.filter((name) => !paths.includes(name));
  const surplus = paths.filter(
    (name) => !REQUIRED.includes(name) && !ALLOWED.some((pattern) => pattern.test(name)),
  );
  return [
    ...missing.map((name) => `${name} has to be in the package and is not`),
    ...surplus.map((name) => `${name} is in the package and may not be`),
  ];
}

module.exports = { SIZE_LIMIT, complaintsAbout };
