/* The few fields of the kernel's structures that the program reads. Where they lie is settled when it is loaded, from
 * the running kernel's type information: the build does not depend on any kernel. */
#pragma once

#include <linux/types.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct gendisk {
  int major;
  int first_minor;
};

struct block_device {
  struct gendisk* bd_disk;
};

struct bvec_iter {
  __u64 bi_sector;
  unsigned int bi_size;
};

struct bio {
  struct bio* bi_next;
  struct block_device* bi_bdev;
  unsigned int bi_opf;
  struct bvec_iter bi_iter;
  void* bi_private;
};

struct request_queue {
  struct gendisk* disk;
};

struct request {
  struct request_queue* q;
  unsigned int cmd_flags;
  struct bio* bio;
};

#pragma clang attribute pop
