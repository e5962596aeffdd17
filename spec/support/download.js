/*
 * Downloads a mongod through mongodb-memory-server into the directory given as the first argument and prints its
 * path. binary.js runs it as a process of its own, because a download that stalls can only be ended from outside.
 * It must not decide anything.
 */
'use strict';

const { MongoBinary } = require('mongodb-memory-server-core');

MongoBinary.getPath({ downloadDir: process.argv[2] }).then(
  (file) => process.stdout.write(file),
  (error) => {
    process.stderr.write(error.message);
    process.exitCode = 1;
  },
);
