'use strict';

module.exports = require('./ours').loop;
