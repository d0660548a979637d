"""What can be wrong with how a page looks, asked of it in JavaScript: a list of words, [] where all is well."""

FAULTS = r"""(() => {
  const wrong = [], wide = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth > wide) wrong.push('the page scrolls sideways')
  const light = colour => {
    const [r, g, b] = colour.match(/[\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = getComputedStyle(document.body).backgroundColor
  const ground = light(behind === 'rgba(0, 0, 0, 0)' ? 'rgb(255, 255, 255)' : behind)
  const contrast = one => (Math.max(one, ground) + 0.05) / (Math.min(one, ground) + 0.05)
  for (const e of document.querySelectorAll('body *')) {
    const inside = e.parentElement.closest('svg'), name = e.tagName
    if (['SCRIPT', 'IMG', 'title', 'desc'].includes(name) || (inside && name !== 'text')) continue
    const box = e.getBoundingClientRect()
    const empty = name === 'TD' || (name === 'TH' && !e.textContent) || name === 'UL'
    if (!empty && (box.width < 1 || box.height < 1)) wrong.push(`${name} ${e.id || e.className} is not to be seen`)
    if (!e.parentElement.closest('.scroll') && (box.left < -1 || box.right > wide + 1))
      wrong.push(`${name} reaches ${Math.round(box.right)} of ${wide}: ${e.textContent.slice(0, 40)}`)
    if (e.matches('.scroll') && wide > 1000 && e.scrollWidth > e.clientWidth + 1)
      wrong.push(`table is cut off: ${e.textContent.slice(0, 40)}`)
    if (['P', 'TD', 'TH', 'LI', 'text', 'FIGCAPTION'].includes(name)) {
      const style = getComputedStyle(e)
      if (contrast(light(name === 'text' ? style.fill : style.color)) < 4.4)
        wrong.push(`pale: ${name} ${e.textContent.slice(0, 40)}`)
    }
  }
  for (const svg of document.querySelectorAll('svg')) {
    const texts = [...svg.querySelectorAll('text')].map(e => [e, e.getBoundingClientRect()])
    texts.forEach(([e, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left)
      if (across > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
        wrong.push(`${e.textContent} lies on ${other.textContent}`)
    }))
  }
  return [...new Set(wrong)].slice(0, 20)
})()"""
