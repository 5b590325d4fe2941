#include "agent/renewal.h"

#include <spdlog/spdlog.h>

#include "agent/text_file.h"
#include "net/certificates.h"

namespace tidemark::agent {

void Renewal::begin(Link& link) {
  next_ = {};
  look(link);
}

void Renewal::look(Link& link) {
  if (clock_.monotonic() < next_) return;
  ask_if_due(link);
  next_ = clock_.monotonic() + std::chrono::hours(1);
}

void Renewal::ask_if_due(Link& link) {
  const auto pem = read_text_file(dir_.certificate());
  const auto info = pem ? net::describe_certificate(*pem) : Result<net::CertificateInfo>(std::unexpected(pem.error()));
  if (!info) {
    spdlog::warn("certificate not readable error=\"{}\"", info.error().message());
    return;
  }
  board_.set_certificate_expiry(info->not_after_us);
  const std::int64_t lifetime = info->not_after_us - info->not_before_us;
  if (!link.welcome().certificate_expires_soon() && info->not_after_us - clock_.wall_us() > lifetime / 3) return;
  const auto key = read_text_file(dir_.key());
  const auto request = key ? net::make_request_for_key(*key, name_) : Result<std::string>(std::unexpected(key.error()));
  asked_ = true;
  const Status asked = request ? link.renew(*request) : Status(std::unexpected(request.error()));
  if (asked) return;
  asked_ = false;
  spdlog::warn("certificate not renewed error=\"{}\"", asked.error().message());
}

void Renewal::received(const std::string& pem) {
  asked_ = false;
  const auto info = net::describe_certificate(pem);
  if (!info || info->machine != machine_) {
    spdlog::warn("renewed certificate refused why=\"{}\"", info ? "it names another machine" : info.error().what);
    return;
  }
  if (auto saved = write_file_atomically(dir_.certificate(), pem, 0600); !saved) {
    spdlog::error("renewed certificate not saved error=\"{}\"", saved.error().message());
    return;
  }
  board_.set_certificate_expiry(info->not_after_us);
  spdlog::info("certificate renewed expires={}", format_rfc3339(info->not_after_us));
}

}  // namespace tidemark::agent
