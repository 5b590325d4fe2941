#include "cli/convert.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

#include "cli/nbd_uri.h"
#include "cli/spawn.h"

namespace tidemark::cli {
namespace {

Result<Sha256> digest_durably(AdminClient& client, const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail_errno(errno, path, "open");
  Sha256Stream hash;
  std::vector<std::byte> buffer(4 << 20);
  Status done;
  while (done) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0) done = fail_errno(errno, path, "read");
    if (n <= 0) break;
    if (client.stopped()) done = fail(Code::cancelled, {}, "interrupted");
    hash.update(std::span(buffer).first(static_cast<std::size_t>(n)));
  }
  if (done && ::fsync(fd) != 0) done = fail_errno(errno, path, "write");
  ::close(fd);
  if (!done) return std::unexpected(std::move(done).error());
  return hash.finish();
}

}  // namespace

Result<Sha256> convert_disk(AdminClient& client, const std::string& machine, std::uint64_t epoch, const Disk& disk,
                            const std::string& format, const std::string& path, PointHold& hold, Progress& progress) {
  TIDEMARK_TRY(need_program("qemu-img", "qemu-utils"));
  const std::string uri = TIDEMARK_TRY(nbd_uri(client, machine, epoch, disk.number));
  ::unlink(path.c_str());
  progress.start(disk.name, disk.size);
  std::string said;
  Status held;
  const auto ran = TIDEMARK_TRY(run_program(
      {"qemu-img", "convert", "-p", "-f", "raw", "-O", format, uri, path},
      [&] {
        if (held) held = hold.renew();
        return client.stopped() || !held;
      },
      [&](const std::string& text) {  // "    (12.50/100%)\r", again and again
        said += text;
        const auto open = said.rfind('(');
        if (open == std::string::npos || said.find('/', open) == std::string::npos) return;
        progress.set(static_cast<std::uint64_t>(std::strtod(said.c_str() + open + 1, nullptr) / 100 *
                                                static_cast<double>(disk.size)));
        said.erase(0, open);
      }));
  progress.finish();
  if (ran.status != 0)
    return fail(Code::io, machine + "/" + disk.name,
                "qemu-img convert ended with status " + std::to_string(ran.status) + ": " +
                    ran.err.substr(0, ran.err.find_last_not_of('\n') + 1),
                "`tidemark verify " + machine + " --at " + exactly(epoch) + "` tells whether the point can be read");
  return digest_durably(client, path);
}

}  // namespace tidemark::cli
