/*
 * `import … = require(…)`, for CommonJS written in TypeScript, and plain `require`. Compiled, never run.
 */
import mongoose = require('mongoose');
import lockRelease = require('mongoose-lock-release');
import { expectSame } from './expect.js';

const schema = new mongoose.Schema({ customer: String });
schema.plugin(lockRelease);
schema.plugin(lockRelease, 'Invoice');
schema.plugin(require('mongoose-lock-release'));

const options: lockRelease.PluginOptions = { path: 'busy' };
schema.plugin(lockRelease, options);
expectSame<InstanceType<typeof mongoose.Error> | lockRelease.LockError, Error>(false);
export const isLost = (error: unknown): boolean =>
  error instanceof lockRelease.LockError && error.code === 'ERR_LOCK_LOST';
