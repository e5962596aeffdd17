/*
 * The ways to apply the plugin, and its options. Compiled, never run.
 */
import mongoose from 'mongoose';
import lockRelease from 'mongoose-lock-release';

const inferred = new mongoose.Schema({ customer: String }, { timestamps: true, versionKey: false });
inferred
  .plugin(lockRelease)
  .plugin(lockRelease, 'Invoice')
  .plugin(lockRelease, {})
  .plugin(lockRelease, {
    modelName: 'Invoice',
    path: 'busy',
    label: 'billing-worker-3',
    fence: false,
    writeConcern: { w: 'majority', j: true, wtimeoutMS: 5000 },
    exitTimeout: 500,
    pollInterval: 100,
  })
  .plugin(lockRelease, { writeConcern: { w: 1 } })
  .plugin(lockRelease, { writeConcern: { w: 'eu-and-us' } });

new mongoose.Schema<{ customer: string }>({ customer: String }).plugin(lockRelease, 'Invoice');
new mongoose.Schema().plugin(lockRelease);
mongoose.plugin(lockRelease);
mongoose.plugin(lockRelease, { label: 'everywhere' });
lockRelease(inferred);
lockRelease(inferred, 'Invoice');

// @ts-expect-error: a name or an object
inferred.plugin(lockRelease, 5);
// @ts-expect-error: an option that does not exist
lockRelease(inferred, { model: 'Invoice' });
// @ts-expect-error: the name of the model is a string
lockRelease(inferred, { modelName: 5 });
// @ts-expect-error: the fence is on or off
lockRelease(inferred, { fence: 'yes' });
// @ts-expect-error: milliseconds are a number
lockRelease(inferred, { pollInterval: '250' });
// @ts-expect-error: a write concern is an object
lockRelease(inferred, { writeConcern: 'majority' });
// @ts-expect-error: a schema, not its definition
lockRelease({ customer: String });
// @ts-expect-error: the schema is missing
lockRelease();
