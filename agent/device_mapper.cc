#include "agent/device_mapper.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/dm-ioctl.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "agent/file_descriptor.h"

namespace tidemark::agent {
namespace {

constexpr const char* kControl = "/dev/mapper/control";
constexpr std::size_t kTableMax = 16 << 20;

// Multipath is not among them: it was not tried.
constexpr std::array<std::string_view, 14> kKnownTargets{"linear", "striped", "crypt",    "delay",          "mirror",
                                                         "raid",   "thin",    "cache",    "writecache",     "integrity",
                                                         "era",    "vdo",     "snapshot", "snapshot-origin"};

std::unexpected<Error> cannot_read(const std::string& path, int error_number) {
  auto error = fail_errno(error_number, path, "read the table of device mapper of");
  error.error().code = Code::unsupported;
  error.error().remedy = fmt::format("it takes root and {}; or set tracking = \"digests\"", kControl);
  return error;
}

// Room for the answer to a request, wiped when it goes: the table of an encrypted device may hold its key.
class Answer {
 public:
  explicit Answer(std::size_t size) : bytes_(size) {}
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;
  ~Answer() { ::explicit_bzero(bytes_.data(), bytes_.size()); }

  dm_ioctl& head() { return *reinterpret_cast<dm_ioctl*>(bytes_.data()); }
  std::size_t size() const { return bytes_.size(); }
  // What stands at an offset from the first target on; empty: that is beyond the answer.
  std::string_view from(std::size_t offset) {
    const std::size_t end = std::min<std::size_t>(head().data_size, bytes_.size());
    const std::size_t begin = std::size_t{head().data_start} + offset;
    return begin < end ? std::string_view(bytes_.data() + begin, end - begin) : std::string_view();
  }

 private:
  std::vector<char> bytes_;
};

Result<Sha256> digest_of(Answer& answer, const std::string& path) {
  Sha256Stream digest;
  const auto add = [&](std::string_view text) { digest.update(std::as_bytes(std::span(text))); };
  std::size_t offset = 0;
  for (std::uint32_t i = 0; i < answer.head().target_count; ++i) {
    const std::string_view rest = answer.from(offset);
    dm_target_spec target{};
    if (rest.size() <= sizeof target) return cannot_read(path, EBADMSG);
    std::memcpy(&target, rest.data(), sizeof target);
    target.target_type[sizeof target.target_type - 1] = '\0';
    const std::string_view type = target.target_type;
    if (std::find(kKnownTargets.begin(), kKnownTargets.end(), type) == kKnownTargets.end()) {
      return fail(Code::unsupported, path,
                  fmt::format("it has a target of device mapper that cannot be tracked ({})", type),
                  "protect the disk below it, or set tracking = \"digests\"");
    }
    const std::string_view parameters = rest.substr(sizeof target);
    add(fmt::format("{} {} {} ", target.sector_start, target.length, type));
    add(parameters.substr(0, parameters.find('\0')));
    add("\n");
    offset = target.next;  // counted from the first target
  }
  return digest.finish();
}

}  // namespace

Result<Sha256> digest_of_table(dev_t device, const std::string& path) {
  const FileDescriptor control(::open(kControl, O_RDWR | O_CLOEXEC));
  if (!control) return cannot_read(path, errno);
  for (std::size_t size = 16 << 10; size <= kTableMax; size *= 4) {
    Answer answer(size);
    dm_ioctl& head = answer.head();
    head.version[0] = DM_VERSION_MAJOR;
    head.data_size = static_cast<__u32>(size);
    head.data_start = sizeof(dm_ioctl);
    head.flags = DM_STATUS_TABLE_FLAG | DM_NOFLUSH_FLAG | DM_SECURE_DATA_FLAG;
    head.dev = makedev(major(device), minor(device));
    if (::ioctl(control.get(), DM_TABLE_STATUS, &head) != 0) return cannot_read(path, errno);
    if ((head.flags & DM_BUFFER_FULL_FLAG) == 0) return digest_of(answer, path);
  }
  return cannot_read(path, E2BIG);
}

}  // namespace tidemark::agent
