/* What the in-kernel program and the agent share: the layout of the maps. Plain C, for clang -target bpf and for C++.
 *
 * Three sets of marks, a bit for each granule of every disk, one behind the other in one mapped array of words: 0 and 1
 * collect in turns (that of the generation's lowest bit), 2 is what was taken from them and is not durable yet. The
 * program writes 0 and 1 only, with atomic ORs; it never clears anything.
 */
#pragma once

#include <linux/types.h>

#define TRACK_VERSION 4u /* of this layout and of what the program does: another one is not gone on with */
#define TRACK_SETS 3u
#define TRACK_TAKEN_SET 2u
#define TRACK_DISKS_MAX 64u
#define TRACK_NO_WINDOW 0xffffffffu
#define TRACK_PROGRAMS_MAX 16u
#define TRACK_IDENTITY_SIZE 16u
#define TRACK_BUCKETS 16384u /* of what is in flight */
#define TRACK_SLOTS 8u       /* of a bucket: the addresses fill one line of the cache */
#define TRACK_CARRIED_MAX (TRACK_BUCKETS * TRACK_SLOTS)

/* Why something could not be marked: bits of `missed`. */
#define TRACK_MISSED_ZONE 1ull        /* a zone operation, or one that this program does not know */
#define TRACK_MISSED_PASSTHROUGH 2ull /* a command past the block layer, with data for the device */
#define TRACK_MISSED_SUBMISSION 4ull  /* a write ended whose beginning was not seen */
#define TRACK_MISSED_IN_FLIGHT 8ull   /* more writes in flight than can be remembered */
#define TRACK_MISSED_GENERATION 16ull /* the generation changed again and again */
#define TRACK_MISSED_NESTED 32ull     /* the kernel skipped programs in an interrupt (set by the agent) */
#define TRACK_MISSED_TABLE 64ull      /* device mapper shows something else (set by the agent) */

/* A protected disk or partition: a stretch of a whole disk. */
struct track_window {
  __u64 first_sector;
  __u64 sectors;
  __u32 first_word; /* of its marks within a set */
  __u32 next;       /* another window on the same disk, or TRACK_NO_WINDOW */
};

/* What a bio writes to. */
struct track_place {
  __u64 sector; /* of the whole disk */
  __u32 bytes;
  __u32 disk; /* as the kernel numbers it */
};

/* Writes between their submission and their end, by the address of the bio; 0: a free slot. The place is filled in
 * after the address, before the program leaves its generation. */
struct track_bucket {
  __u64 bio[TRACK_SLOTS];
  struct track_place place[TRACK_SLOTS];
};

/* Granules of a disk of the agent's list. */
struct track_carried {
  __u64 first;
  __u32 count;
  __u32 disk;
};

/* Who uses which generation, one for each CPU. Entered counts before anything is marked, left after. */
struct track_counters {
  __u64 entered[2];
  __u64 left[2];
  __u64 writes;    /* writes, discards and the like that were submitted */
  __u64 marked[2]; /* the bio that the first copy of a program has just dealt with: queued, remapped */
  __u64 bio[7];    /* of each program: the verifier lets a pointer be calculated with once it was stored */
  __u64 unused[2];
};

/* One entry. The program reads `generation` and sets bits of `missed`; the rest is the agent's memory: it lives as long
 * as the marks do. */
struct track_control {
  __u64 generation;
  __u64 missed;
  __u64 version;
  __u64 ready; /* everything below is filled in */
  __u64 boot_id[2];
  __u64 base_epoch;    /* the marks hold whatever changed since this epoch; 0: nothing is known */
  __u64 pending_epoch; /* the taken set travelled in this epoch, whose Durable has not come */
  __u64 whole_epoch;   /* the marks hold whatever changed since this epoch, which reads everything, was begun */
  __u64 since_us;      /* wall clock: nothing was missed since then */
  __u64 words;         /* of one set */
  __u64 disks;
  __u64 carried; /* entries of that map: what was in flight at the last cut, and is due after it */
  __u64 doubted; /* a submission may have been skipped since everything was read */
  __u64 skipped[TRACK_PROGRAMS_MAX][2]; /* runs that the kernel skipped, as of the last two looks */
  struct {
    __u64 device;
    __u64 diskseq;
    __u64 size;
    __u64 first_sector;
    __u64 identity[2];
  } disk[TRACK_DISKS_MAX];
};
