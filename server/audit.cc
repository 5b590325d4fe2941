#include "server/audit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "server/json_shapes.h"

namespace tidemark::server {
namespace {

constexpr off_t kRoom = 16 << 10;           // for one line and more
constexpr std::size_t kReadMax = 64 << 20;  // from the end

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

std::unexpected<Error> failed(int error_number, const std::string& path, const char* doing) {
  Error error = fail_errno(error_number, path, doing).error();
  error.remedy = "nothing is done that cannot be recorded: make the audit log writable, then try again";
  return std::unexpected(std::move(error));
}

Status sync_parent(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const Descriptor directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0 || ::fsync(directory.get()) != 0) return failed(errno, parent, "sync");
  return {};
}

int open_log(const std::string& path) {
  return ::open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

}  // namespace

Status AuditLog::ready() {
  const std::lock_guard lock(mutex_);
  const Descriptor file(open_log(path_));
  if (file.get() < 0) return failed(errno, path_, "open");
  struct stat info{};
  if (::fstat(file.get(), &info) != 0) return failed(errno, path_, "stat");
  // Room is taken now; where a file system cannot do that, the write itself will tell.
  if (::fallocate(file.get(), FALLOC_FL_KEEP_SIZE, info.st_size, kRoom) != 0 && errno != EOPNOTSUPP)
    return failed(errno, path_, "take room");
  return {};
}

Status AuditLog::append(const AuditEntry& entry) {
  nlohmann::json line = {{"time", format_rfc3339(clock_.wall_us())},
                         {"who", entry.who},
                         {"action", entry.action},
                         {"object", entry.object},
                         {"result", entry.error ? "failed" : "done"}};
  if (entry.uid) line["uid"] = *entry.uid;
  if (entry.pid) line["pid"] = *entry.pid;
  if (!entry.details.empty()) line["details"] = entry.details;
  if (entry.error) line["error"] = to_json(*entry.error)["error"];
  std::string text = dump(line) + "\n";

  const std::lock_guard lock(mutex_);
  const bool fresh = ::access(path_.c_str(), F_OK) != 0;
  const Descriptor file(open_log(path_));
  if (file.get() < 0) return failed(errno, path_, "open");
  struct stat info{};
  if (::fstat(file.get(), &info) != 0) return failed(errno, path_, "stat");
  char last = '\n';
  if (info.st_size > 0 && ::pread(file.get(), &last, 1, info.st_size - 1) != 1) return failed(errno, path_, "read");
  if (last != '\n') text.insert(text.begin(), '\n');  // behind a line that a crash left torn
  for (std::string_view rest = text; !rest.empty();) {
    const ssize_t n = ::write(file.get(), rest.data(), rest.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(errno, path_, "write");
    rest.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(file.get()) != 0) return failed(errno, path_, "sync");
  if (fresh) return sync_parent(path_);
  return {};
}

Result<std::vector<nlohmann::json>> AuditLog::read(std::size_t limit) {
  const std::lock_guard lock(mutex_);
  std::vector<nlohmann::json> lines;
  const Descriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (file.get() < 0 && errno == ENOENT) return lines;
  if (file.get() < 0) return fail_errno(errno, path_, "open");
  struct stat info{};
  if (::fstat(file.get(), &info) != 0) return fail_errno(errno, path_, "stat");
  // From the end, by pieces, until there are enough lines.
  std::string text;
  off_t at = info.st_size;
  const auto enough = [&] {
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) > limit || text.size() >= kReadMax;
  };
  while (at > 0 && !enough()) {
    const off_t piece = std::min<off_t>(at, 256 << 10);
    std::string part(static_cast<std::size_t>(piece), '\0');
    std::size_t done = 0;
    while (done < part.size()) {
      const ssize_t n =
          ::pread(file.get(), part.data() + done, part.size() - done, at - piece + static_cast<off_t>(done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return fail_errno(errno, path_, "read");
      if (n == 0) return fail(Code::io, path_, "it became shorter while it was read", "try again");
      done += static_cast<std::size_t>(n);
    }
    text.insert(0, part);
    at -= piece;
  }
  std::size_t begin = at > 0 ? text.find('\n') + 1 : 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    auto line = nlohmann::json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                      text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (line.is_object()) lines.push_back(std::move(line));
    begin = end + 1;
  }
  if (lines.size() > limit) lines.erase(lines.begin(), lines.end() - static_cast<std::ptrdiff_t>(limit));
  return lines;
}

}  // namespace tidemark::server
