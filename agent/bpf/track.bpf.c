/* Marks the granules that are written to, in the kernel, from the tracepoints of the block layer.
 *
 * A write is marked when it is submitted, in the generation that collects at that moment: so it is visible to a cut
 * before it can change what the cut reads. From then until its end its place is remembered by the address of its bio:
 * what is in flight at a cut may take effect after the cut has read it, and is read again for the next one.
 *
 * Nothing depends on seeing the end of a write. Whose end escapes stays in flight, and is read again at every cut, until
 * its address is used again. That happens: kernels are in use that run no program while the CPU is in an interrupt of
 * certain processes (docs/agent.md). A write that ends without having been submitted is a miss.
 *
 * Every bio is seen at block_bio_queue, and at block_bio_remap where it is passed on to another disk. A part that is split
 * off is seen at block_split and remembered for itself, before what is left can end. Device mapper shows there what is left,
 * and the bio ends when all of it is done: what is remembered of it stays. The end of a bio comes with the
 * request that it became part of, at block_rq_complete, or at block_bio_complete where it became part of none. Commands
 * past the block layer are requests without any of this.
 *
 * A generation is entered on this CPU's counter, then looked at again, and left when everything is marked and
 * remembered: once the agent has stored the next generation, and has seen as many leave the old one as had entered it,
 * nobody marks there.
 *
 * The kernel skips a program in an interrupt that arrives while that same program runs on the same CPU. So those of the
 * submission are there twice: the interrupt finds the other copy at rest. The kernel counts what it skipped, and the
 * agent looks at that: see KernelMarks::skipped().
 */
#include <stdbool.h>
#include <linux/bpf.h>

#include "kernel.h"
#include "layout.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Operations as the kernel has numbered them since 4.10. An odd one carries data to the device; one of those that is
 * not known here forces a rescan. */
#define OP_MASK 0xffu
#define OP_WRITE 1u
#define OP_DISCARD 3u
#define OP_SECURE_ERASE 5u
#define OP_WRITE_ZEROES 9u
#define OP_DRIVER_OUT 35u

#define SECTOR_SHIFT 9
#define GRANULE_SECTORS_SHIFT 3
#define MERGED_MAX 4096u /* bios of one request */
#define TRIES 8

const volatile __u32 words_per_set = 0;
const volatile __u32 mark_at_the_end = 0; /* only as a planted bug */

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct track_control);
} control SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct track_counters);
} counters SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} marks SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, TRACK_DISKS_MAX);
  __type(key, __u32); /* of the whole disk, as the kernel numbers it */
  __type(value, __u32);
} disks SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, TRACK_DISKS_MAX);
  __type(key, __u32);
  __type(value, struct track_window);
} windows SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, TRACK_BUCKETS);
  __type(key, __u32);
  __type(value, struct track_bucket);
} in_flight SEC(".maps");

/* The agent's memory: the program does not use it. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, TRACK_CARRIED_MAX);
  __type(key, __u32);
  __type(value, struct track_carried);
} carried SEC(".maps");

static __always_inline struct track_control *the_control(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&control, &zero);
}

static __always_inline void miss(__u64 why) {
  struct track_control *c = the_control();
  if (c && (c->missed & why) == 0) __sync_fetch_and_or(&c->missed, why);
}

static __always_inline __u32 number_of(const struct gendisk *disk) {
  return (__u32)disk->major << 20 | (__u32)disk->first_minor;
}

static __always_inline void mark_word(__u32 index, __u64 bits) {
  __u64 *word = bpf_map_lookup_elem(&marks, &index);
  if (word && (*(volatile __u64 *)word & bits) != bits) __sync_fetch_and_or(word, bits);
}

struct stretch {
  __u64 first, last; /* granules */
  __u32 base;        /* word of the window's granule 0 */
};

static long mark_one_word(__u32 i, struct stretch *s) {
  __u64 word = (s->first >> 6) + i;
  __u64 bits = ~0ull;
  if (i == 0) bits &= ~0ull << (s->first & 63);
  if (word == s->last >> 6) bits &= ~0ull >> (63 - (s->last & 63));
  mark_word(s->base + (__u32)word, bits);
  return 0;
}

struct window_walk {
  __u64 from, to; /* sectors of the whole disk */
  __u32 at;       /* window */
  __u32 set;
};

static long mark_window(__u32 i, struct window_walk *walk) {
  __u32 at = walk->at;
  struct track_window *w = bpf_map_lookup_elem(&windows, &at);
  if (!w) return 1;
  __u64 from = walk->from > w->first_sector ? walk->from : w->first_sector;
  __u64 end = w->first_sector + w->sectors;
  __u64 to = walk->to < end ? walk->to : end;
  if (from < to) {
    struct stretch s;
    s.first = (from - w->first_sector) >> GRANULE_SECTORS_SHIFT;
    s.last = (to - 1 - w->first_sector) >> GRANULE_SECTORS_SHIFT;
    s.base = walk->set * words_per_set + w->first_word;
    __u64 count = (s.last >> 6) - (s.first >> 6) + 1;
    if (count == 1)
      mark_one_word(0, &s);
    else
      bpf_loop((__u32)count, mark_one_word, &s, 0);
  }
  walk->at = w->next;
  return w->next == TRACK_NO_WINDOW;
}

static __always_inline struct track_counters *of_this_cpu(void) {
  __u32 cpu = bpf_get_smp_processor_id();
  return bpf_map_lookup_elem(&counters, &cpu);
}

enum { QUEUE_1, QUEUE_2, REMAP_1, REMAP_2, SPLIT_1, END_1, DONE_1 };

/* Its address as a number. No run of a program interrupts another one of the same program on the same CPU. */
static __always_inline __u64 number_for(struct bio *bio, struct track_counters *mine, int program) {
  *(volatile __u64 *)&mine->bio[program] = (__u64)bio;
  return *(volatile __u64 *)&mine->bio[program];
}

static __always_inline struct track_bucket *bucket_of(__u64 bio) {
  __u32 index = (__u32)((bio >> 6) * 0x9e3779b97f4a7c15ull >> 50);
  return bpf_map_lookup_elem(&in_flight, &index);
}
_Static_assert(TRACK_BUCKETS == 1u << (64 - 50), "the hash has as many bits as there are buckets");

/* `queued`: and not passed on from one disk to another. */
static __always_inline void remember(__u64 bio, const struct track_place *place, bool queued) {
  struct track_bucket *bucket = bucket_of(bio);
  if (!bucket) return;
  for (__u32 i = 0; i < TRACK_SLOTS; ++i) {
    if (*(volatile __u64 *)&bucket->bio[i] != bio) continue;
    if (!queued && bucket->place[i].disk != place->disk) miss(TRACK_MISSED_IN_FLIGHT); /* its end belongs to both */
    bucket->place[i] = *place;
    return;
  }
  for (__u32 i = 0; i < TRACK_SLOTS; ++i) {
    if (*(volatile __u64 *)&bucket->bio[i] != 0 || __sync_val_compare_and_swap(&bucket->bio[i], 0, bio) != 0) continue;
    bucket->place[i] = *place;
    return;
  }
  miss(TRACK_MISSED_IN_FLIGHT);
}

/* Enters the generation that collects, and gives it to `generation`. */
static __always_inline bool enter(struct track_counters *mine, __u64 *generation) {
  struct track_control *c = the_control();
  if (!c) return false;
  for (int i = 0; i < TRIES; ++i) {
    __u64 now = *(volatile __u64 *)&c->generation;
    /* The value is used, so that the addition is a full barrier: entered is seen before the second look. */
    if (__sync_fetch_and_add(&mine->entered[now & 1], 1) == ~0ull) return false;
    *generation = now;
    if (*(volatile __u64 *)&c->generation == now) return true;
    if (__sync_fetch_and_add(&mine->left[now & 1], 1) == ~0ull) return false;
  }
  miss(TRACK_MISSED_GENERATION);
  return false;
}

/* Marks a place on a disk of which `window` is the first window. */
static __always_inline void mark(__u64 generation, __u32 window, const struct track_place *place) {
  if (place->bytes == 0) return;
  struct window_walk walk;
  walk.from = place->sector;
  walk.to = place->sector + (((__u64)place->bytes + (1 << SECTOR_SHIFT) - 1) >> SECTOR_SHIFT);
  walk.at = window;
  walk.set = (__u32)(generation & 1);
  if (mark_window(0, &walk) == 0) bpf_loop(TRACK_DISKS_MAX, mark_window, &walk, 0);
}

/* Does the operation change data of a disk at a place that can be told? Others that may do so are a miss. */
static __always_inline bool changes(__u32 op) {
  if (op == OP_WRITE || op == OP_DISCARD || op == OP_SECURE_ERASE || op == OP_WRITE_ZEROES) return true;
  if ((op & 1) != 0) miss(op == OP_DRIVER_OUT ? TRACK_MISSED_PASSTHROUGH : TRACK_MISSED_ZONE);
  return false;
}

static __always_inline void submitted(struct bio *bio, __u64 key, bool queued, struct track_counters *mine) {
  __u32 op = bio->bi_opf & OP_MASK;
  if ((op & 1) == 0) return;
  struct track_place place;
  place.disk = number_of(bio->bi_bdev->bd_disk);
  __u32 *window = bpf_map_lookup_elem(&disks, &place.disk);
  if (!window || !changes(op)) return;
  place.sector = bio->bi_iter.bi_sector;
  place.bytes = bio->bi_iter.bi_size;
  __u64 generation;
  if (!enter(mine, &generation)) return;
  if (!mark_at_the_end) mark(generation, *window, &place);
  remember(key, &place, queued);
  __sync_fetch_and_add(&mine->left[generation & 1], 1);
  if (queued) __sync_fetch_and_add(&mine->writes, 1);
}

/* The second copy has something to do only where the first one was skipped. Then another run of the first one was
 * interrupted on this very CPU, after it had forgotten which bio it was at before. */
static __always_inline void submitted_once(struct bio *bio, int program) {
  bool queued = program == QUEUE_1 || program == QUEUE_2;
  bool second_copy = program == QUEUE_2 || program == REMAP_2;
  struct track_counters *mine = of_this_cpu();
  if (!mine) return;
  __u64 key = number_for(bio, mine, program);
  bool done = second_copy && mine->marked[queued] == key;
  mine->marked[queued] = 0;
  if (done) return;
  submitted(bio, key, queued, mine);
  if (!second_copy) mine->marked[queued] = key;
}

static __always_inline void mark_late(struct track_counters *mine, const struct track_place *place) {
  __u32 disk = place->disk;
  __u32 *window = bpf_map_lookup_elem(&disks, &disk);
  __u64 generation;
  if (!window || !enter(mine, &generation)) return;
  mark(generation, *window, place);
  __sync_fetch_and_add(&mine->left[generation & 1], 1);
}

static __always_inline bool forget(struct track_counters *mine, __u64 key) {
  struct track_bucket *bucket = bucket_of(key);
  bool known = false;
  if (!bucket) return known;
  for (__u32 i = 0; i < TRACK_SLOTS; ++i) {
    if (*(volatile __u64 *)&bucket->bio[i] != key) continue;
    if (mark_at_the_end) mark_late(mine, &bucket->place[i]);
    *(volatile __u64 *)&bucket->bio[i] = 0;
    known = true;
  }
  return known;
}

static __always_inline bool is_remembered_within(__u64 bio, const struct track_place *place) {
  struct track_bucket *bucket = bucket_of(bio);
  if (!bucket) return false;
  for (__u32 i = 0; i < TRACK_SLOTS; ++i) {
    if (*(volatile __u64 *)&bucket->bio[i] != bio) continue;
    const struct track_place *whole = &bucket->place[i];
    return whole->disk == place->disk && whole->sector <= place->sector &&
           place->sector + (place->bytes >> SECTOR_SHIFT) <= whole->sector + (whole->bytes >> SECTOR_SHIFT);
  }
  return false;
}

static __always_inline void split_off(struct bio *part) {
  if ((part->bi_opf & 1) == 0) return;
  struct track_counters *mine = of_this_cpu();
  struct track_place place;
  place.disk = number_of(part->bi_bdev->bd_disk);
  if (!mine || !bpf_map_lookup_elem(&disks, &place.disk)) return;
  place.sector = part->bi_iter.bi_sector;
  place.bytes = part->bi_iter.bi_size;
  __u64 key = number_for(part, mine, SPLIT_1);
  if (!is_remembered_within(key, &place)) remember(key, &place, true);
}

static __always_inline void bio_ended(struct bio *bio) {
  __u32 op = bio->bi_opf & OP_MASK;
  struct track_counters *mine = of_this_cpu();
  if ((op & 1) == 0 || !mine || forget(mine, number_for(bio, mine, END_1))) return;
  __u32 disk = number_of(bio->bi_bdev->bd_disk);
  if (bpf_map_lookup_elem(&disks, &disk) && changes(op)) miss(TRACK_MISSED_SUBMISSION);
}

struct bio_walk {
  __u64 bio;   /* its address */
  __u32 bytes; /* that ended, from this bio on */
  __u32 unknown;
};

/* One bio of a request that has several. */
static long merged_ended(__u32 i, struct bio_walk *walk) {
  struct bio *bio = (struct bio *)walk->bio;
  struct track_counters *mine = of_this_cpu();
  if (!bio || !mine) return 1;
  __u32 size = BPF_CORE_READ(bio, bi_iter.bi_size);
  if (size > walk->bytes) return 1;
  if (!forget(mine, walk->bio)) walk->unknown = 1;
  walk->bytes -= size;
  walk->bio = (__u64)BPF_CORE_READ(bio, bi_next);
  return walk->bytes == 0;
}

static __always_inline void request_ended(struct request *rq, __u32 bytes) {
  __u32 op = rq->cmd_flags & OP_MASK;
  if ((op & 1) == 0) return;
  struct gendisk *owner = rq->q->disk;
  if (!owner) return; /* a queue without a disk: the commands of a controller */
  __u32 disk = number_of(owner);
  if (!bpf_map_lookup_elem(&disks, &disk) || !changes(op)) return;
  struct track_counters *mine = of_this_cpu();
  struct bio *bio = rq->bio;
  if (!bio || !mine) return;
  __u32 size = bio->bi_iter.bi_size;
  if (size > bytes) return; /* a part of it: the rest goes on */
  /* An empty one is a flush, or what comes after the data of one that ended before. */
  bool unknown = !forget(mine, number_for(bio, mine, DONE_1)) && size != 0;
  if (bytes != size) {
    struct bio_walk walk = {(__u64)BPF_CORE_READ(bio, bi_next), bytes - size, unknown};
    bpf_loop(MERGED_MAX, merged_ended, &walk, 0);
    unknown = walk.unknown;
  }
  if (unknown) miss(TRACK_MISSED_SUBMISSION);
}

static __always_inline void passed_by(struct request *rq) {
  if ((rq->cmd_flags & OP_MASK) != OP_DRIVER_OUT) return;
  struct gendisk *owner = rq->q->disk;
  if (!owner) return;
  __u32 disk = number_of(owner);
  if (bpf_map_lookup_elem(&disks, &disk)) miss(TRACK_MISSED_PASSTHROUGH);
}

SEC("tp_btf/block_bio_queue") int BPF_PROG(queue_1, struct bio *bio) {
  submitted_once(bio, QUEUE_1);
  return 0;
}
SEC("tp_btf/block_bio_queue") int BPF_PROG(queue_2, struct bio *bio) {
  submitted_once(bio, QUEUE_2);
  return 0;
}
SEC("tp_btf/block_bio_remap") int BPF_PROG(remap_1, struct bio *bio) {
  submitted_once(bio, REMAP_1);
  return 0;
}
SEC("tp_btf/block_bio_remap") int BPF_PROG(remap_2, struct bio *bio) {
  submitted_once(bio, REMAP_2);
  return 0;
}
SEC("tp_btf/block_split") int BPF_PROG(split_1, struct bio *part) {
  split_off(part);
  return 0;
}
SEC("tp_btf/block_bio_complete") int BPF_PROG(end_1, struct request_queue *q, struct bio *bio) {
  bio_ended(bio);
  return 0;
}
SEC("tp_btf/block_rq_issue") int BPF_PROG(issue_1, struct request *rq) {
  passed_by(rq);
  return 0;
}
SEC("tp_btf/block_rq_complete") int BPF_PROG(done_1, struct request *rq, int error, unsigned int bytes) {
  request_ended(rq, bytes);
  return 0;
}
