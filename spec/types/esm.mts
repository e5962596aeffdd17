/*
 * The same from an ES module: the default export is the plugin, and the error class can be named. Compiled, never run.
 */
import { Schema, model } from 'mongoose';
import lockRelease, { LockError, type LockReleaseMethods } from 'mongoose-lock-release';

const schema = new Schema({ customer: String }, { methods: {} as LockReleaseMethods });
schema.plugin(lockRelease, { modelName: 'Invoice' });
const invoice = new (model('Invoice', schema))({ customer: 'ada' });

try {
  const locked = await invoice.lock(10_000);
  locked?.customer?.trim();
} catch (error) {
  if (error instanceof LockError) console.error(error.code);
}
