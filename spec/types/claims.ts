/*
 * Claims: the types of a model's statics, of its queries' helpers and of the expressions. Compiled, never run.
 */
import { type HydratedDocument, type Model, Schema, model } from 'mongoose';
import lockRelease, {
  type ClaimOptions,
  type Claims,
  type ClaimsOptions,
  type LockReleaseMethods,
  type LockReleaseQueryHelpers,
  type LockReleaseStatics,
} from 'mongoose-lock-release';
import { expectSame } from './expect.js';

interface JobFields {
  state: string;
  n?: number;
}
type JobModel = Model<JobFields, LockReleaseQueryHelpers, LockReleaseMethods> & LockReleaseStatics;

const schema = new Schema<JobFields, JobModel, LockReleaseMethods, LockReleaseQueryHelpers>({
  state: String,
  n: Number,
});
schema.plugin(lockRelease);
const Job = model<JobFields, JobModel>('Job', schema);

export async function claimed(signal: AbortSignal): Promise<void> {
  const jobs = await Job.claim({ state: 'new' }, 10_000);
  const [job] = jobs;
  if (!job) return;
  expectSame<typeof job.state, string>(true);
  expectSame<typeof job.$lock.held, boolean>(true);
  expectSame<typeof job.n, number | undefined>(true);
  const own: HydratedDocument<JobFields, LockReleaseMethods> = job;
  job.state = 'done';
  await job.save();
  await own.release();
  (await job.release())?.state.trim();

  const options: ClaimOptions = { limit: 100, sort: '-n', wait: Infinity, signal, renew: true };
  await Job.claim({}, 10_000, options);
  await Job.claim({ n: { $gt: 5 }, $or: [{ state: 'new' }] }, 10_000, { maxHold: 5, maxStall: 5 });
  await Job.claim({}, 10_000, { sort: { n: -1, state: 'asc' } });
  await Job.claim({}, 10_000, { sort: [['n', 'descending']] });
  await Job.claim({}, 10_000, { sort: new Map([['n', 1]]) });
  await Job.claim({}, 10_000, null);
  // @ts-expect-error: the filter and the duration are missing
  await Job.claim();
  // @ts-expect-error: the duration is missing
  await Job.claim({ state: 'new' });
  // @ts-expect-error: a filter is an object
  await Job.claim('new', 10_000);
  // @ts-expect-error: milliseconds are a number
  await Job.claim({}, '10');
  // @ts-expect-error: a number of documents
  await Job.claim({}, 10_000, { limit: '3' });
  // @ts-expect-error: an option of claims alone
  await Job.claim({}, 10_000, { concurrency: 3 });
  // @ts-expect-error: an order has directions
  await Job.claim({}, 10_000, { sort: { n: 'up' } });
  // @ts-expect-error: a signal, not its controller
  await Job.claim({}, 10_000, { signal: new AbortController() });
  // @ts-expect-error: a path that the schema does not have
  job.colour;
  // @ts-expect-error: a claimed document's lock cannot be set
  job.$lock = undefined;
}

export async function withoutEnd(signal: AbortSignal): Promise<void> {
  const options: ClaimsOptions = { concurrency: 10, sort: 'n', signal, renew: false };
  const jobs = Job.claims({ state: 'new' }, 10_000, options);
  for await (const job of jobs) {
    expectSame<typeof job.state, string>(true);
    job.$lock.assertHeld();
    await job.save();
    break;
  }
  const end = jobs.forEach(async (job, lock) => {
    expectSame<typeof lock, lockRelease.Lock>(true);
    expectSame<typeof job.n, number | undefined>(true);
    await job.extend(10_000);
  });
  expectSame<typeof end, Promise<void>>(true);
  await jobs.forEach(() => {});
  const some: Claims<{ state: string }> = jobs;
  for await (const { state } of some) state.trim();
  // @ts-expect-error: an option of claim alone
  Job.claims({}, 10_000, { limit: 5 });
  // @ts-expect-error: claims wait without end
  Job.claims({}, 10_000, { wait: 5 });
  // @ts-expect-error: not an array
  jobs[0];
  // @ts-expect-error: a loop has to await
  for (const job of jobs) job;
  // @ts-expect-error: the work is a function
  await jobs.forEach('work');
}

export async function helpers(): Promise<void> {
  const locked = await Job.find({ state: 'new' }).locked();
  expectSame<(typeof locked)[number]['state'], string>(true);
  const free = await Job.findOne().unlocked().sort('n');
  expectSame<NonNullable<typeof free>['n'], number | undefined>(true);
  expectSame<Awaited<ReturnType<typeof count>>, number>(true);
  // @ts-expect-error: locked by the option path, not by an argument
  Job.find().locked('busy');
}
const count = () => Job.countDocuments().unlocked();

export async function expressions(): Promise<void> {
  await Job.find({ $expr: lockRelease.locked() });
  await Job.aggregate([{ $match: { $expr: lockRelease.unlocked('work.busy') } }]);
  expectSame<ReturnType<typeof lockRelease.unlocked>, { $lte: [string, '$$NOW'] }>(true);
  // @ts-expect-error: a path is a string
  lockRelease.locked(5);
}

/* The other way: all inferred from the schema. */
const inferredSchema = new Schema(
  { state: { type: String, required: true }, n: Number },
  {
    methods: {} as LockReleaseMethods,
    statics: {} as LockReleaseStatics,
    query: {} as LockReleaseQueryHelpers,
  },
);
inferredSchema.plugin(lockRelease);
const Inferred = model('Inferred', inferredSchema);

export async function inferred(): Promise<void> {
  const [job] = await Inferred.claim({ state: 'new' }, 10_000, { limit: 10 });
  if (!job) return;
  expectSame<typeof job.state, string>(true);
  await job.release();
  for await (const each of Inferred.claims({}, 10_000)) each.$lock.held;
  const found = await Inferred.find().unlocked();
  expectSame<(typeof found)[number]['state'], string>(true);
}

export async function withoutTheStatics(): Promise<void> {
  const Plain = model('Plain', new Schema({ state: String }));
  // @ts-expect-error: applying the plugin alone cannot be seen by the types
  await Plain.claim({}, 10_000);
  // @ts-expect-error: nor that it adds helpers
  Plain.find().locked();
}
