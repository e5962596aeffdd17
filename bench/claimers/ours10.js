'use strict';

module.exports = require('./ours').batches(10);
