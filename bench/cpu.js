/**
 * CPU time of processes and threads, in microseconds, from Linux's /proc. On other systems each
 * figure is null and the tables show a dash.
 */
'use strict';

const fs = require('node:fs');

/** What Linux calls USER_HZ: fixed at 100 for user space on x64 and arm64. */
const MICROS_PER_TICK = 10_000;

/** User and system time of a whole process, in steps of 10 ms (threads that ended included). */
function processCpu(pid) {
  return ticksOf(`/proc/${pid}/stat`);
}

/** Time that one thread was on a CPU: in nanoseconds where the kernel has it, else as above. */
function threadCpu(pid, tid) {
  const schedstat = readIfThere(`/proc/${pid}/task/${tid}/schedstat`);
  const nanos = schedstat === null ? 0 : Number(schedstat.split(' ')[0]);
  return nanos > 0 ? nanos / 1000 : ticksOf(`/proc/${pid}/task/${tid}/stat`);
}

function ticksOf(file) {
  const stat = readIfThere(file);
  if (stat === null) return null;
  // The second field is the program's name, in brackets, and may itself hold spaces and brackets.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const [user, system] = [fields[11], fields[12]];
  return (Number(user) + Number(system)) * MICROS_PER_TICK;
}

function readIfThere(file) {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT' || error.code === 'ESRCH') return null;
    throw error;
  }
}

module.exports = { processCpu, threadCpu };
